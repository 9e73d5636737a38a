"""RoPE's tables agree with those of transformers' LlamaRotaryEmbedding, up to the rounding of float32.

That class computes angles in float32. Each frequency has a relative error of about 2^-24, and so has the angle. The
tables may differ by the error that this causes, and by no more.
"""

import numpy as np
import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llama3.config import ModelConfig, RopeScaling
from llama3.model.rope import rope_table
from tests.tiny import hf_config, tiny_config

LENGTH = 8192


def theirs(config: ModelConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(cos, sin), each (LENGTH, head_dim / 2), and the frequencies (head_dim / 2,)."""
    rotary = LlamaRotaryEmbedding(transformers.LlamaConfig.from_dict(hf_config(config)))
    cos, sin = rotary(torch.zeros(1), torch.arange(LENGTH)[None])
    half = config.head_dim // 2
    assert torch.equal(cos[..., :half], cos[..., half:])  # it holds the value of each pair twice
    return cos[0, :, :half].numpy(), sin[0, :, :half].numpy(), rotary.inv_freq.double().numpy()


@pytest.mark.parametrize("head_dim", [4, 64, 128])
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize(
    "scaling",
    [None, RopeScaling(8.0, 1.0, 4.0, 8192), RopeScaling(32.0, 1.0, 4.0, 8192), RopeScaling(4.0, 2.0, 3.0, 64)],
    ids=["default", "llama 3.1", "llama 3.2", "short"],
)
def test_every_angle_equals_transformers(head_dim: int, theta: float, scaling: RopeScaling | None) -> None:
    config = tiny_config(head_dim=head_dim, rope_theta=theta, rope_scaling=scaling, max_seq_len=2 * LENGTH)
    cos, sin, frequency = theirs(config)
    angle = np.outer(np.arange(LENGTH), frequency)
    allowed = 2.0**-21 * angle + 2.0**-23  # the angle may be rounded a few times, the table once
    for ours, reference in zip(rope_table(config, LENGTH), (cos, sin)):
        assert ours.dtype == np.float32 and ours.shape == reference.shape
        assert np.all(np.abs(ours - reference) <= allowed)


@pytest.mark.parametrize("spacing", [4, 16])
def test_the_tables_agree_exactly_if_float32_is_exact(spacing: int) -> None:
    """With frequencies that are powers of two, no angle is rounded, and the tables differ by at most one rounding."""
    head_dim = {4: 16, 16: 8}[spacing]
    config = tiny_config(head_dim=head_dim, rope_theta=float(spacing ** (head_dim // 2)), max_seq_len=LENGTH)
    cos, sin, frequency = theirs(config)
    assert frequency.tolist() == [float(spacing) ** -i for i in range(head_dim // 2)]
    for ours, reference in zip(rope_table(config, LENGTH), (cos, sin)):
        assert np.abs(ours - reference).max() <= 2.0**-23
