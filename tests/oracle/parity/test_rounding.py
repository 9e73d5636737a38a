"""plain.forward with rounding is transformers in bfloat16: value by value on any CPU, and in its logits where the order
of PyTorch's sums is known.

In another order some values near the middle between two numbers of bfloat16 are rounded the other way. A model with a
few layers makes so much of them that its logits are then about as far from ours as those of float32.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from machine import flags

from llama3 import plain
from llama3.activation_names import activation_names
from llama3.checkpoint import load_folder
from llama3.llama import Llama
from llama3.parity import rounding, rounding_sdpa, torch_sums
from llama3.parity.write_reference import load, reference_of
from tests.tiny import random_tensors, tiny_config, write_hf

DEMO = Path(__file__).parents[3] / "weights" / "demo"
BFLOAT16 = {"avx512_bf16", "amx_bf16"}  # with these, oneDNN multiplies otherwise
ORDER_KNOWN = pytest.mark.skipif(
    "avx512f" not in flags() or bool(BFLOAT16 & set(flags())),
    reason="PyTorch's order of sums is known for AVX-512 without bfloat16 only",
)
MODELS = ("demo", "demo, long", "two layers", "three layers", "wide")


def bfloat16(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor(np.random.RandomState(seed).standard_normal(shape)).bfloat16()


def numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[int]]]:
    """Folders of models, each with tokens."""
    random, llama = np.random.RandomState(0), Llama.load(DEMO)
    found = {
        "demo": (DEMO, llama.encode_chat([{"role": "user", "content": "What is RoPE?"}])),
        "demo, long": (DEMO, random.randint(0, llama.config.vocab_size, 200).tolist()),
    }
    sizes = {
        "two layers": {},
        "three layers": {"n_layers": 3, "n_kv_heads": 1},
        "wide": {"dim": 400, "hidden_dim": 800},
    }
    for seed, (name, changes) in enumerate(sizes.items()):
        config = tiny_config(**changes)
        folder = write_hf(tmp_path_factory.mktemp("m") / "m", config, random_tensors(config, seed, "bf16"))
        found[name] = (folder, random.randint(0, config.vocab_size, 70).tolist())
    return found


@pytest.mark.parametrize("attention", rounding.ATTENTION)
@pytest.mark.parametrize("name", ["demo", "three layers"])
def test_from_transformers_values_each_next_one_follows_but_for_a_few_near_the_middle(
    name: str, attention: str, models: dict
) -> None:
    folder, tokens = models[name]
    checkpoint = load_folder(folder)
    hidden = (".scores",) if attention == "eager" else (".scores", ".weights")
    names = [n for n in activation_names(checkpoint.config)[:-1] if not n.endswith(hidden)]
    theirs = reference_of(load(folder, "bfloat16", attention), tokens, "", activations=names)
    values = dict(theirs.activations) | {"logits": theirs.logits}
    off: dict[str, float] = {}

    def see(name: str, ours: np.ndarray) -> np.ndarray | None:
        if name not in values:
            return None
        other = values[name].astype(np.float64)
        assert np.all(np.abs(ours - other) <= 2.0**-7 * np.abs(other) + 1e-5 * np.abs(other).max()), name
        off[name] = float((ours != other).mean())
        return other

    rounding.forward(tokens, checkpoint.config, checkpoint.weights, see, attention=attention)
    assert len(off) == len(values) and max(off.values()) <= 0.01 and np.mean(list(off.values())) <= 0.001, off


@ORDER_KNOWN
@pytest.mark.parametrize("attention", rounding.ATTENTION)
@pytest.mark.parametrize("name", MODELS)
def test_rounded_logits_are_four_times_nearer_to_transformers_in_bfloat16_than_float32(
    name: str, attention: str, models: dict
) -> None:
    folder, tokens = models[name]
    checkpoint = load_folder(folder)
    with torch.inference_mode():
        theirs = numbers(load(folder, "bfloat16", attention)(torch.tensor([tokens])).logits[0])
    rounded = rounding.forward(tokens, checkpoint.config, checkpoint.weights, attention=attention)
    exact = plain.forward(tokens, checkpoint.config, checkpoint.weights)
    near, far = (float(((x - theirs) ** 2).sum() / (theirs**2).sum()) for x in (rounded, exact))
    assert far > 1e-6 and near <= far / 4, (near / far, far)


@ORDER_KNOWN
@pytest.mark.parametrize("width", [7, 64, 385, 641, 1000, 1600])
def test_a_product_is_torch_s_bit_for_bit(width: int) -> None:
    x, w = bfloat16(40, width), bfloat16(300, width, seed=1)
    ours = rounding.round_to(torch_sums.product(numbers(x), numbers(w)), "bfloat16")
    assert np.array_equal(ours, numbers(torch.nn.functional.linear(x, w)))


@ORDER_KNOWN
@pytest.mark.parametrize("width", [8, 31, 48, 257, 576, 600, 4096, 8191])
def test_a_row_s_sum_is_torch_s_bit_for_bit(width: int) -> None:
    x = torch.tensor(np.random.RandomState(0).standard_normal((50, width)), dtype=torch.float32)
    assert np.array_equal(torch_sums.row_sum(x.numpy())[:, 0], x.sum(-1).numpy())


@ORDER_KNOWN
@pytest.mark.parametrize("T", [1, 15, 30, 70, 200, 600])
def test_sdpa_is_torch_s_but_for_a_few_values_near_the_middle(T: int) -> None:
    q, k, v = (bfloat16(1, 2, T, 64, seed=i) * 1.5 for i in range(3))
    theirs = numbers(torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)[0])  # (2, T, 64)
    heads = [[numbers(x[0, j]) for x in (q, k, v)] for j in range(2)]
    ours = np.stack([rounding_sdpa.attend(*head, lambda x: rounding.round_to(x, "bfloat16")) for head in heads])
    assert (ours != theirs).mean() <= 1e-3
