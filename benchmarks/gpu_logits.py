"""Are the logits right on a GPU, at the size of Llama 3 8B? And how long do a full prompt and 64 tokens take?

    python benchmarks/gpu_logits.py [--out FILE.json]      on a GPU with 50 GB; needs transformers, and a torch and
                                                           a CuPy that support the GPU (see gpu.py)
    python benchmarks/gpu_logits.py --tiny                 every line of it without a GPU: a tiny model, whose kernels
                                                           are emulated, behind a stand-in for CuPy

The weights are random, in bfloat16. The same tokens go through this project's CUDA path, through transformers in
bfloat16, and through transformers in float32, which is the reference. All run on the same device. Limits: a relative
error of at most 2e-2, and of at most 1.5 times the error of transformers in bfloat16.
"""

import argparse
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
import transformers
from gpu_floor import LLAMA3_8B, TINY  # the files beside this one
from machine import about_this_run

sys.path.insert(0, str(Path(__file__).parents[1]))
from llama3.config import ModelConfig
from llama3.cuda.device import open_device
from llama3.cuda.kv_cache import KVCache
from llama3.cuda.transformer import Transformer
from llama3.cuda.weights import upload_weights
from llama3.errors import DeviceError
from llama3.model.batch import Batch
from llama3.model.weights import LayerWeights, Weights
from llama3.sampler import SequenceSampler
from llama3.sampling_params import SamplingParams

THEIRS = {
    "attention_norm": "input_layernorm",
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "w1": "mlp.gate_proj",
    "w2": "mlp.down_proj",
    "w3": "mlp.up_proj",
}


def random_weights(c: ModelConfig) -> Weights:
    """Every layer has its own matrices, cut at random places from one long row of random numbers."""
    rng = np.random.default_rng(0)
    longest = max(c.hidden_dim * c.dim, c.n_heads * c.head_dim * c.dim)
    pool = rng.standard_normal(longest + (1 << 20), np.float32)

    def matrix(rows: int, columns: int, scale: float = 1) -> np.ndarray:
        out = np.empty((rows, columns), ml_dtypes.bfloat16)
        step = max(1, longest // columns)
        for row in range(0, rows, step):  # the embedding and the head are longer than the pool
            start, n = int(rng.integers(1 << 20)), min(step, rows - row)
            out[row : row + n] = pool[start : start + n * columns].reshape(n, columns) * (scale * columns**-0.5)
        return out

    def norm() -> np.ndarray:
        return rng.uniform(0.5, 1.5, c.dim).astype(ml_dtypes.bfloat16)

    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    layers = [
        LayerWeights(
            norm(), matrix(q, c.dim), matrix(kv, c.dim), matrix(kv, c.dim), matrix(c.dim, q),
            norm(), matrix(c.hidden_dim, c.dim), matrix(c.dim, c.hidden_dim), matrix(c.hidden_dim, c.dim),
        )
        for _ in range(c.n_layers)
    ]  # fmt: skip
    return Weights(matrix(c.vocab_size, c.dim, scale=c.dim**0.5), layers, norm(), matrix(c.vocab_size, c.dim))


def by_transformers(
    c: ModelConfig, weights: Weights, tokens: np.ndarray, dtype: torch.dtype, torch_device: str
) -> np.ndarray:
    """The logits of every token by transformers -> (T, vocab_size) float32."""
    config = transformers.LlamaConfig(
        hidden_size=c.dim, num_hidden_layers=c.n_layers, num_attention_heads=c.n_heads,
        num_key_value_heads=c.n_kv_heads, head_dim=c.head_dim, intermediate_size=c.hidden_dim,
        vocab_size=c.vocab_size, rms_norm_eps=c.norm_eps, max_position_embeddings=c.max_seq_len,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta}, tie_word_embeddings=False,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(torch_device):
            model = transformers.LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    named = {"model.embed_tokens": weights.tok_embeddings, "model.norm": weights.norm, "lm_head": weights.output}
    for i, layer in enumerate(weights.layers):
        named |= {f"model.layers.{i}.{theirs}": getattr(layer, ours) for ours, theirs in THEIRS.items()}
    parameters = dict(model.named_parameters())
    assert parameters.keys() == {f"{name}.weight" for name in named}
    with torch.no_grad():
        for name, array in named.items():
            bits = torch.from_numpy(np.ascontiguousarray(array).view(np.int16))  # torch does not accept ml_dtypes
            parameters[f"{name}.weight"].copy_(bits.view(torch.bfloat16))
        logits = model(torch.from_numpy(tokens[None].astype(np.int64)).to(torch_device)).logits[0].float().cpu().numpy()
    del model, parameters
    gc.collect()
    torch.cuda.empty_cache()
    return logits


def errors(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    row_errors = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    return {"mean": float(row_errors.mean()), "worst_row": float(row_errors.max())}


def read_prompt(model: Transformer, cache: KVCache, ids: np.ndarray) -> float:
    """Seconds for a prompt in chunks, with the logits of its last token."""
    start = time.perf_counter()
    for i in range(0, len(ids), model.prefill_chunk):
        logit_rows = np.array([0]) if i + model.prefill_chunk >= len(ids) else np.array([], int)
        model.forward(Batch.of([(0, ids[i : i + model.prefill_chunk])]), cache, logit_rows)
    model.device.sync()
    return time.perf_counter() - start


def decode(model: Transformer, cache: KVCache, steps: int) -> list[float]:
    """Seconds for each of some greedy steps."""
    sampler, token, times = SequenceSampler(SamplingParams(temperature=0), [0], model.config.vocab_size), 1, []
    for _ in range(steps):
        start = time.perf_counter()
        (sample,) = model.step(Batch.of([(0, [token])]), cache, [sampler]).samples()
        token = sample.token
        sampler.accept(token)
        times.append(time.perf_counter() - start)
    return times


def compare(c: ModelConfig, torch_device: str, n: int, prompt: int, steps: int, out: Path | None) -> int:
    """Compare the logits of n tokens; time a prompt and some steps. Returns the exit status: 0 within the limits."""
    device = open_device("cuda")
    weights = random_weights(c)
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, c.vocab_size, n).astype(np.int32)
    expected = by_transformers(c, weights, tokens, torch.float32, torch_device)
    theirs = errors(by_transformers(c, weights, tokens, torch.bfloat16, torch_device), expected)

    start = time.perf_counter()
    model = Transformer(device, c, upload_weights(device, weights))
    device.sync()
    upload_s = time.perf_counter() - start
    ours = errors(model.forward(Batch.of([(0, tokens)]), model.new_cache(1, n), np.arange(n)), expected)
    ok = ours["mean"] <= min(2e-2, 1.5 * theirs["mean"])
    for name, error in (("ours", ours), ("transformers in bfloat16", theirs)):
        print(f"relative error of {name}: mean {error['mean']:.2e}, worst row {error['worst_row']:.2e}")
    print("within the limits" if ok else "BEYOND the limits")

    cache = model.new_cache(1, c.max_seq_len)
    prompt_s = read_prompt(model, cache, rng.integers(0, c.vocab_size, prompt).astype(np.int32))
    times = decode(model, cache, steps)
    free, total = device.memory()
    print(
        f"prompt of {prompt} tokens: {prompt_s:.2f} s; {steps} decoded, median {np.median(times) * 1e3:.2f} ms a token"
    )
    print(f"weights uploaded in {upload_s:.1f} s; {(total - free) / 1e9:.2f} of {total / 1e9:.1f} GB in use")
    if out:
        figures: dict[str, Any] = {"ours": ours, "transformers_bf16": theirs, "within_the_bars": ok}
        figures |= {"prompt_s": prompt_s, "decode_s": times, "upload_s": upload_s}
        figures["memory"] = {"free": free, "total": total}
        out.write_text(json.dumps(about_this_run() | {"device": torch_device} | figures, indent=1) + "\n")
    return 0 if ok else 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny model, emulated on the CPU")
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    args = parser.parse_args(arguments)
    if args.tiny:
        from tests.cuda.stand_ins import emulated

        with emulated():
            return compare(TINY, "cpu", 70, 250, 4, args.out)
    try:
        return compare(LLAMA3_8B, "cuda", 256, 8192 - 64, 64, args.out)
    except DeviceError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
