"""The published models as sparse files: their names, shapes, dtypes, shards and index.

All weights are zero, so they take no space on the disk.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VOCAB_SIZE = 128_256
SHARD = 5_000_000_000  # bytes; a new shard begins before these are exceeded
SCALED_ROPE = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class Published:
    dim: int
    n_layers: int
    n_heads: int
    hidden_dim: int
    parameters: int  # their number according to the model card or Meta's implementation
    rope_factor: float | None = None
    tied: bool = False
    n_kv_heads: int = 8

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    def shapes(self) -> dict[str, list[int]]:
        kv_dim = self.n_kv_heads * self.head_dim
        shapes: dict[str, list[int]] = {"model.embed_tokens.weight": [VOCAB_SIZE, self.dim]}
        for i in range(self.n_layers):
            layer = {
                "self_attn.q_proj": [self.dim, self.dim],
                "self_attn.k_proj": [kv_dim, self.dim],
                "self_attn.v_proj": [kv_dim, self.dim],
                "self_attn.o_proj": [self.dim, self.dim],
                "mlp.gate_proj": [self.hidden_dim, self.dim],
                "mlp.up_proj": [self.hidden_dim, self.dim],
                "mlp.down_proj": [self.dim, self.hidden_dim],
                "input_layernorm": [self.dim],
                "post_attention_layernorm": [self.dim],
            }
            shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
        shapes["model.norm.weight"] = [self.dim]
        return shapes if self.tied else shapes | {"lm_head.weight": [VOCAB_SIZE, self.dim]}

    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 128000,
            "eos_token_id": 128009,
            "hidden_act": "silu",
            "hidden_size": self.dim,
            "initializer_range": 0.02,
            "intermediate_size": self.hidden_dim,
            "max_position_embeddings": 131072 if self.rope_factor else 8192,
            "model_type": "llama",
            "num_attention_heads": self.n_heads,
            "num_hidden_layers": self.n_layers,
            "num_key_value_heads": self.n_kv_heads,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": SCALED_ROPE | {"factor": self.rope_factor} if self.rope_factor else None,
            "rope_theta": 500000.0,
            "tie_word_embeddings": self.tied,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.40.0.dev0",
            "use_cache": True,
            "vocab_size": VOCAB_SIZE,
        }

    def write(self, folder: Path, without: str | None = None) -> Path:
        """Write the model to the folder, except the tensor `without`. Returns the folder."""
        shapes = self.shapes()
        shards: list[dict[str, int]] = [{}]  # tensor -> bytes
        for name, shape in shapes.items():
            size = 2 * int(np.prod(shape))
            if sum(shards[-1].values()) + size > SHARD:
                shards.append({})
            shards[-1][name] = size
        weight_map = {}
        for i, sizes in enumerate(shards, start=1):
            file = "model.safetensors" if len(shards) == 1 else f"model-{i:05}-of-{len(shards):05}.safetensors"
            write_zeros(folder / file, {name: (shapes[name], size) for name, size in sizes.items() if name != without})
            weight_map |= dict.fromkeys(sizes.keys() - {without}, file)
        if len(shards) > 1:
            index = {"metadata": {"total_size": 2 * self.parameters}, "weight_map": weight_map}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "config.json").write_text(json.dumps(self.config()))
        generation = {"bos_token_id": 128000, "eos_token_id": [128001, 128009]}
        (folder / "generation_config.json").write_text(json.dumps(generation))
        return folder


def write_zeros(path: Path, tensors: dict[str, tuple[list[int], int]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, size) in sorted(tensors.items()):
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end := end + size]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as shard:
        shard.write(len(text).to_bytes(8, "little") + text)
        shard.truncate(8 + len(text) + end)


LLAMA_3_8B = Published(4096, 32, 32, 14336, 8_030_261_248)
OTHERS = {
    "Llama 3 70B": Published(8192, 80, 64, 28672, 70_553_706_496),
    "Llama 3.1 8B": Published(4096, 32, 32, 14336, 8_030_261_248, rope_factor=8.0),
    "Llama 3.2 1B": Published(2048, 16, 32, 8192, 1_235_814_400, rope_factor=32.0, tied=True),
    "Llama 3.2 3B": Published(3072, 28, 24, 8192, 3_212_749_824, rope_factor=32.0, tied=True),
}
