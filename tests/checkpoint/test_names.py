"""Every tensor goes to its place in `Weights`, and a missing, extra or misshapen tensor is refused by name.

The oracle for Meta's layout is its RoPE on complex numbers, written here a second time.
"""

import numpy as np
import pytest

from llama3.checkpoint.names import HUGGING_FACE, META, check, layout_of, shapes, split_halves, to_weights
from llama3.config import ModelConfig
from llama3.errors import CheckpointError
from llama3.model.rope import rope_table, rotate
from tests.tiny import random_tensors, tiny_config

Q0, UP1 = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"


def test_metas_interleaved_rows_give_the_same_scores_after_the_permutation():
    """Meta's RoPE rotates neighbouring pairs as complex numbers. It is written here again; scores q k^T must agree."""
    config = tiny_config(head_dim=8, rope_theta=100.0)
    random = np.random.RandomState(0)
    wq = random.standard_normal((config.n_heads * 8, config.dim))
    wk = random.standard_normal((config.n_kv_heads * 8, config.dim))
    x = random.standard_normal((70, config.dim))  # a wrong layout looks right for the first tokens
    angles = np.arange(70)[:, None] * 100.0 ** (-np.arange(0, 8, 2) / 8)

    def metas(w: np.ndarray, n_heads: int) -> np.ndarray:
        heads = (x @ w.T).reshape(70, n_heads, 4, 2)
        rotated = (heads[..., 0] + 1j * heads[..., 1]) * np.exp(1j * angles)[:, None]
        return np.stack([rotated.real, rotated.imag], -1).reshape(70, n_heads, 8)

    def ours(w: np.ndarray, n_heads: int) -> np.ndarray:
        cos, sin = rope_table(config, 70)
        heads = (x @ split_halves(w, n_heads).T).reshape(70, n_heads, 8)
        return rotate(heads.astype(np.float32), cos, sin)

    for head in range(config.n_heads):
        expected = metas(wq, config.n_heads)[:, head] @ metas(wk, config.n_kv_heads)[:, head // 2].T
        found = ours(wq, config.n_heads)[:, head] @ ours(wk, config.n_kv_heads)[:, head // 2].T
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("layout", [HUGGING_FACE, META])
def test_the_layout_is_recognised_by_the_embeddings_name(layout: str):
    assert layout_of(shapes(tiny_config(), layout)) == layout


@pytest.mark.parametrize("names", [[], ["x"], ["tok_embeddings.weight", "model.embed_tokens.weight"]])
def test_names_of_neither_layout_or_of_both_are_refused(names: list[str]):
    with pytest.raises(CheckpointError, match=r"model\.embed_tokens\.weight or tok_embeddings\.weight"):
        layout_of(names)


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ([Q0], f"tensor {Q0!r} is missing"),
        ([Q0, UP1], f"tensors {Q0!r}, {UP1!r} are missing"),
        (["lm_head.weight"], "tensor 'lm_head.weight' is missing"),
        (["model.norm.weight"], "tensor 'model.norm.weight' is missing"),
    ],
)
def test_a_missing_tensor_is_named(missing: list[str], says: str):
    tensors = {name: array for name, array in random_tensors(tiny_config()).items() if name not in missing}
    with pytest.raises(CheckpointError) as caught:
        check(tiny_config(), tensors, HUGGING_FACE)
    assert str(caught.value) == says


def test_of_many_missing_tensors_the_first_are_named_and_all_are_counted():
    with pytest.raises(CheckpointError, match=r"^9 tensors \('model\.layers\.2\.\S+, .*, \.\.\.\) are missing$"):
        check(tiny_config(n_layers=3), random_tensors(tiny_config(n_layers=2)), HUGGING_FACE)


@pytest.mark.parametrize(
    "extra",
    ["model.layers.2.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.bias", "", "../x", "rope.freqsx"],
)
def test_an_extra_tensor_is_refused_by_name(extra: str):
    tensors = random_tensors(tiny_config()) | {extra: np.zeros(2, np.float32)}
    with pytest.raises(CheckpointError) as caught:
        check(tiny_config(), tensors, HUGGING_FACE)
    assert str(caught.value) == f"tensor {extra!r} is not part of a Llama 3 of this config (2 layers)"


@pytest.mark.parametrize(
    "name", ["rope.freqs", "model.layers.1.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"]
)
def test_tables_of_rope_are_ignored(name: str):
    check(tiny_config(), random_tensors(tiny_config()) | {name: np.zeros(8, np.float32)}, HUGGING_FACE)


def wrong_shape(config: ModelConfig, name: str, shape: tuple[int, ...]) -> str:
    tensors = random_tensors(config) | {name: np.zeros(shape, np.float32)}
    with pytest.raises(CheckpointError) as caught:
        check(config, tensors, HUGGING_FACE)
    return str(caught.value)


@pytest.mark.parametrize("name", list(shapes(tiny_config(), HUGGING_FACE)))
def test_a_wrong_shape_is_named_with_both_shapes(name: str):
    expected = shapes(tiny_config(), HUGGING_FACE)[name]
    for shape in [(), (*expected, 1), (expected[0] + 1, *expected[1:]), (1, *expected)]:
        message = wrong_shape(tiny_config(), name, shape)
        assert name in message and str(shape) in message and str(expected) in message


def test_a_transposed_matrix_is_a_wrong_shape():
    assert "(48, 64)" in wrong_shape(tiny_config(), Q0, (48, 64))


def test_every_tensor_goes_to_its_own_field():
    """Each tensor is filled with a different number; the names are compared with Meta's, which are repeated here."""
    config = tiny_config(n_layers=2)
    order = ["attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3"]
    metas = [
        *["attention_norm", "attention.wq", "attention.wk", "attention.wv", "attention.wo"],
        *["ffn_norm", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"],
    ]
    names = ["tok_embeddings", "norm", "output", *(f"layers.{i}.{name}" for i in range(2) for name in metas)]
    number = {f"{name}.weight": i for i, name in enumerate(names)}
    tensors = {name: np.full(shape, number[name], np.float32) for name, shape in shapes(config, META).items()}
    assert tensors.keys() == number.keys()
    weights = to_weights(config, tensors, META)
    assert [array.flat[0] for array in (weights.tok_embeddings, weights.norm, weights.output)] == [0, 1, 2]
    for i, layer in enumerate(weights.layers):
        assert [getattr(layer, field).flat[0] for field in order] == list(range(3 + 9 * i, 12 + 9 * i))


def test_only_metas_q_and_k_are_copied():
    for layout in (HUGGING_FACE, META):
        config = tiny_config()
        tensors = {name: np.ones(shape, np.float32) for name, shape in shapes(config, layout).items()}
        arrays = {id(array) for array in tensors.values()}
        weights = to_weights(config, tensors, layout)
        for layer in weights.layers:
            copied = {name for name, array in vars(layer).items() if id(array) not in arrays}
            assert copied == ({"wq", "wk"} if layout == META else set())


def test_a_tied_output_is_the_embedding_itself_also_where_the_file_repeats_it():
    config = tiny_config(tied_embeddings=True)
    tensors = random_tensors(config, dtype="bf16")
    assert "lm_head.weight" not in tensors
    repeated = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}
    for held in (tensors, repeated):
        check(config, held, HUGGING_FACE)
        weights = to_weights(config, held, HUGGING_FACE)
        assert weights.output is weights.tok_embeddings


@pytest.mark.parametrize("change", ["value", "shape", "dtype"])
def test_a_tied_output_that_differs_is_refused(change: str):
    config = tiny_config(tied_embeddings=True, vocab_size=5000)
    tensors = random_tensors(config)
    output = tensors["model.embed_tokens.weight"].copy()
    if change == "value":
        output[-1, -1] += 1
    output = output[:-1] if change == "shape" else output.astype(np.float16) if change == "dtype" else output
    check(config, tensors | {"lm_head.weight": output}, HUGGING_FACE)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        to_weights(config, tensors | {"lm_head.weight": output}, HUGGING_FACE)
