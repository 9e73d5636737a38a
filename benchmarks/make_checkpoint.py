"""Writes a checkpoint with the names, shapes and files of the published Llama 3 8B, and with random weights.

    python benchmarks/make_checkpoint.py FOLDER [--layers 32] [--seed 0]

With all 32 layers it takes 16.06 GB of disk: four shards with an index, config.json and generation_config.json. Speed
and memory do not depend on the values of the weights, so it stands in for the published files in measurements.

There is no tokenizer in it. Python takes token ids (`Llama.load(FOLDER).generate([128000, 9906])`); the command line
refuses the folder until the tokenizer.model or tokenizer.json of any Llama 3 is put there.

The library safetensors saves a file from tensors that are all in memory, 5 GB for one shard. Here the header, which
needs only shapes, is written first and then part after part of each tensor, so that memory stays far below 1 GiB.
"""

import argparse
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from llama3.checkpoint.names import HUGGING_FACE, TOP, layer_name, shapes
from llama3.config import ModelConfig

LLAMA_3_8B = ModelConfig(
    dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, head_dim=128, hidden_dim=14336, vocab_size=128_256
)
SHARD = 5_000_000_000  # bytes of data: a new shard begins before these are exceeded
ORDER = ("wq", "wk", "wv", "wo", "w1", "w3", "w2", "attention_norm", "ffn_norm")  # in which shards are filled
PART = 2**24  # bytes of a tensor that are drawn and written at a time
Shapes = dict[str, tuple[int, ...]]


def write_checkpoint(folder: Path, config: ModelConfig, seed: int = 0, shard_limit: int = SHARD) -> None:
    """Write the checkpoint to a new or empty folder. Equal seeds give equal files.

    All files are written to FOLDER.partial, which is renamed when it is complete. The next run writes it anew. Raises
    OSError, in one line, if the folder holds something or the disk lacks room.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OSError(f"{folder} exists and is not empty: name another folder, or delete it")
    partial = folder.with_name(folder.name + ".partial")
    for file in partial.glob("*.safetensors"):
        file.unlink()
    shards = divide(config, shard_limit)
    total = sum(nbytes(shape) for tensors in shards for shape in tensors.values())
    folder.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder.parent).free) < total + 2**20:  # 1 MB for headers, index and config
        raise OSError(f"{folder}: the files take {total / 1e9:.2f} GB, and {free / 1e9:.2f} GB of the disk are free")

    partial.mkdir(exist_ok=True)
    weight_map = {}
    with tqdm(desc=str(folder), total=total, unit="B", unit_scale=True, disable=None) as bar:
        for i, tensors in enumerate(shards, start=1):
            name = "model.safetensors" if len(shards) == 1 else f"model-{i:05}-of-{len(shards):05}.safetensors"
            with (partial / name).open("wb") as file:
                write_shard(file, tensors, seed, bar)
            weight_map |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(partial / "model.safetensors.index.json", index)
    write_json(partial / "generation_config.json", {"bos_token_id": 128000, "eos_token_id": 128001})
    write_json(partial / "config.json", config_json(config))
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)


def divide(config: ModelConfig, limit: int) -> list[Shapes]:
    """The shapes of each shard's tensors. For the 8B they are the tensors of the published shards."""
    known = shapes(config, HUGGING_FACE)
    of_layers = [layer_name(i, ours, HUGGING_FACE) for i in range(config.n_layers) for ours in ORDER]
    embedding, norm, output = (TOP[ours][0] for ours in ("tok_embeddings", "norm", "output"))
    shards: list[Shapes] = [{}]
    for name in (embedding, *of_layers, norm, output):
        if shards[-1] and sum(map(nbytes, shards[-1].values())) + nbytes(known[name]) > limit:
            shards.append({})
        shards[-1][name] = known[name]
    return shards


def write_shard(file: BinaryIO, tensors: Shapes, seed: int, bar: tqdm) -> None:
    """One safetensors file: the header's length, the header, and the tensors in the order of their names."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in sorted(tensors.items()):
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end := end + nbytes(shape)]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name, shape in sorted(tensors.items()):
        # A seed from the name: a tensor's values depend neither on the shards nor on the number of layers.
        rng = np.random.default_rng([seed, *name.encode()])
        for begin in range(0, nbytes(shape), PART):
            size = min(PART, nbytes(shape) - begin)
            file.write(ones(size) if len(shape) == 1 else random_bits(rng, size))
            bar.update(size)


def ones(size: int) -> np.ndarray:
    """The weights of a norm: `size` bytes of bfloat16."""
    return np.full(size // 2, 0x3F80, "<u2")


def random_bits(rng: np.random.Generator, size: int) -> np.ndarray:
    """`size` bytes of bfloat16 of both signs, from 2^-7 to 2^-5: of such a scale all activations stay near 1.

    They are made of random bits, since eight billion normal numbers take minutes.
    """
    bits = rng.integers(0, 2**64, -(-size // 8), np.uint64).astype("<u8", copy=False).view("<u2")[: size // 2]
    bits &= 0x80FF  # the sign, the lowest bit of the exponent, and the mantissa
    bits |= 0x3C00  # an exponent of -7
    return bits


def nbytes(shape: tuple[int, ...]) -> int:
    return 2 * math.prod(shape)


def config_json(config: ModelConfig) -> dict[str, Any]:
    """The fields of the published config.json, and head_dim."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.dim,
        "initializer_range": 0.02,
        "intermediate_size": config.hidden_dim,
        "max_position_embeddings": config.max_seq_len,
        "model_type": "llama",
        "num_attention_heads": config.n_heads,
        "num_hidden_layers": config.n_layers,
        "num_key_value_heads": config.n_kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": config.norm_eps,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


def write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=32, metavar="N", help="1 to 32")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if not 1 <= args.layers <= 32 or args.seed < 0:
        parser.error(f"found --layers {args.layers} --seed {args.seed}; expected 1 to 32 layers, and a seed from 0 on")
    try:
        write_checkpoint(args.folder, ModelConfig(**vars(LLAMA_3_8B) | {"n_layers": args.layers}), args.seed)
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    size = sum(file.stat().st_size for file in args.folder.iterdir())
    print(f"{args.folder}: {size / 1e9:.2f} GB, {args.layers} layers, seed {args.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
