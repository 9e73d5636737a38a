"""The models of `tests/references/*.safetensors`: their configs, weights and tokens.

The weights are not committed: `tests/tiny.py` generates them again from the seed. Each file's `model` text holds their
sha256. It shows whether the generator has changed, or the model computes something else.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llama3.config import ModelConfig, RopeScaling
from tests.tiny import Tensors, random_tensors, tiny_config, write_hf, write_meta

REFERENCES = Path(__file__).parent / "references"
LONG = 8192
LONG_POSITIONS = (0, 1, 511, 512, 1023, 2048, 4095, 4096, 6000, 8000, 8190, 8191)

LLAMA_3_1 = RopeScaling(8.0, 1.0, 4.0, 8192)
LLAMA_3_2 = RopeScaling(32.0, 1.0, 4.0, 8192)


@dataclass(frozen=True)
class Case:
    name: str
    config: ModelConfig
    dtype: str = "fp32"  # of the checkpoint's files
    shards: int = 1
    length: int = 24  # tokens
    positions: tuple[int, ...] | None = None  # where logits are kept; None: everywhere
    activations: bool = True

    @property
    def seed(self) -> int:
        return CASES.index(self)

    @property
    def path(self) -> Path:
        return REFERENCES / f"{self.name}.safetensors"

    @property
    def layouts(self) -> tuple[str, ...]:
        """The layouts that the case can be written in.

        params.json has no field for two of the numbers of rope scaling, so only their defaults can be written there.
        """
        scaling = self.config.rope_scaling
        if scaling is not None and (scaling.low_freq_factor, scaling.original_max_seq_len) != (1.0, 8192):
            return ("hf",)
        return ("hf",) if self.length == LONG else ("hf", "meta")  # one layout is enough for a long text

    def tensors(self) -> dict[str, np.ndarray]:
        return random_tensors(self.config, self.seed, self.dtype)

    def tokens(self) -> list[int]:
        return np.random.RandomState(1000 + self.seed).randint(0, self.config.vocab_size, self.length).tolist()

    def label(self, tensors: Tensors) -> str:
        digest = hashlib.sha256()
        for name, array in sorted(tensors.items()):
            digest.update(name.encode() + array.tobytes())
        return f"{self.name}: random weights, {self.dtype}, seed {self.seed}, sha256 {digest.hexdigest()}"

    def write(self, folder: Path, tensors: Tensors, layout: str = "hf") -> Path:
        if layout == "meta":
            return write_meta(folder, self.config, tensors)
        return write_hf(folder, self.config, tensors, self.shards)


def scaled(scaling: RopeScaling, **changes: object) -> ModelConfig:
    """transformers expects a window longer than the original one."""
    return tiny_config(rope_scaling=scaling, max_seq_len=2 * LONG, **changes)


CASES = [
    # Query heads per kv head, in every dtype; head_dim is dim / n_heads in the first, and not in the others.
    Case("heads_4_of_4", tiny_config(n_kv_heads=4, head_dim=12), length=72),
    Case("heads_4_of_2", tiny_config()),
    Case("heads_4_of_1_bf16", tiny_config(n_kv_heads=1), "bf16"),
    Case("heads_8_of_1_fp16", tiny_config(n_heads=8, n_kv_heads=1, head_dim=8), "fp16"),
    Case("heads_16_of_2_bf16", tiny_config(n_heads=16, n_kv_heads=2, head_dim=4), "bf16"),
    # Tied embeddings, shards.
    Case("tied_fp16", tiny_config(tied_embeddings=True), "fp16"),
    Case("tied_sharded_bf16", tiny_config(tied_embeddings=True, n_kv_heads=1, vocab_size=200), "bf16", shards=4),
    Case("sharded", tiny_config(n_kv_heads=4, head_dim=8), shards=3),
    Case("sharded_fp16", tiny_config(n_heads=8, n_kv_heads=2), "fp16", shards=2),
    # Sizes and constants.
    Case("one_layer_one_head", tiny_config(n_layers=1, n_heads=1, n_kv_heads=1, head_dim=48)),
    Case("six_layers", tiny_config(n_layers=6, dim=32, hidden_dim=48)),
    Case(
        "odd_sizes_bf16",
        tiny_config(dim=36, n_heads=6, n_kv_heads=3, head_dim=10, hidden_dim=51, vocab_size=131),
        "bf16",
    ),
    Case("wide_heads", tiny_config(head_dim=40, n_heads=2, n_kv_heads=1)),
    Case("theta_1e4_eps_1e-6", tiny_config(rope_theta=10_000.0, norm_eps=1e-6), length=80, activations=False),
    # Scaled RoPE: as published, and with a short original window, so that all kinds of pairs make several turns.
    Case("llama_3_1_rope", scaled(LLAMA_3_1), length=80, activations=False),
    Case("llama_3_2_rope_tied_bf16", scaled(LLAMA_3_2, tied_embeddings=True, head_dim=32), "bf16", length=80),
    Case("short_window_rope", scaled(RopeScaling(4.0, 1.0, 4.0, 48), head_dim=24), length=80),
    Case("short_window_rope_fp16", scaled(RopeScaling(16.0, 2.0, 8.0, 100), n_heads=8), "fp16", length=80, shards=2),
    # The whole context. transformers computes angles in float32, which at position 8,000 are wrong by 6e-4 radians, and
    # that shows in the logits. So these frequencies are powers of two, and no pair is blended: all angles are exact.
    Case(
        "long",
        tiny_config(n_layers=1, n_heads=1, n_kv_heads=1, rope_theta=4.0**8, max_seq_len=LONG),
        length=LONG,
        positions=LONG_POSITIONS,
        activations=False,
    ),
    Case(
        "long_scaled",
        scaled(RopeScaling(8.0, 1.0, 4.0, 512), n_layers=1, n_heads=1, n_kv_heads=1, head_dim=8, rope_theta=16.0**4),
        length=LONG,
        positions=LONG_POSITIONS,
        activations=False,
    ),
]
