"""`Llama.trace`: the names, shapes and values of `plain.forward`, chunk by chunk, and one line for a wrong name."""

import numpy as np
import pytest
import trace_off

from llama3 import Llama, RequestError, plain
from llama3.activation_names import activation_names, activation_shape, choose_names
from llama3.config import ModelConfig
from llama3.model.batch import Batch
from llama3.model.transformer import Transformer
from tests.tiny import random_tensors, tiny_config, write_hf

CONFIG = tiny_config(max_seq_len=700)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Llama:
    return Llama.load(write_hf(tmp_path_factory.mktemp("tiny"), CONFIG, random_tensors(CONFIG)))


def worst_row(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest relative error of a row, over finite numbers; infinities must be in the same places."""
    finite = np.isfinite(expected)
    assert np.array_equal(found[~finite], expected[~finite])
    error, size = (np.where(finite, x, 0) for x in (found - np.where(finite, expected, found), expected))
    return float(np.max(np.linalg.norm(error, axis=-1) / np.maximum(np.linalg.norm(size, axis=-1), 1e-30)))


def test_everything_has_the_names_the_order_and_the_values_of_plain(llama: Llama):
    tokens = np.random.RandomState(0).randint(0, CONFIG.vocab_size, 530).tolist()  # more than one chunk
    expected: dict[str, np.ndarray] = {}
    plain.forward(tokens, CONFIG, llama.model.weights, lambda name, value: expected.update({name: value}))
    found = llama.trace(tokens, "**")
    assert list(found) == list(expected) == activation_names(CONFIG)
    for name, value in found.items():
        assert value.dtype == np.float32 and value.shape == activation_shape(name, CONFIG, 530) == expected[name].shape
        assert worst_row(value, expected[name]) <= 2e-5, name


def test_only_what_is_asked_for_is_kept(llama: Llama):
    found = llama.trace([1, 2, 3], ["norm", "layers.*.q_rope", "layers.1.heads.2.weights"])
    assert list(found) == ["layers.0.q_rope", "layers.1.q_rope", "layers.1.heads.2.weights", "norm"]
    np.testing.assert_allclose(found["layers.1.heads.2.weights"].sum(axis=1), 1, rtol=1e-6)
    assert list(llama.trace(np.array([5]), "logits")) == ["logits"]


def test_tracing_changes_no_logits(llama: Llama):
    assert np.array_equal(llama.trace([1, 2, 3], "**")["logits"], llama.logits([1, 2, 3]))


def test_whoever_does_not_trace_pays_a_few_instructions_a_layer(llama: Llama):
    """Against a forward pass without any line of tracing; benchmarks/trace_off.py says how much time that is."""
    model, bare = Transformer(CONFIG, llama.checkpoint.weights), trace_off.forward_without_tracing()
    batch, names = Batch.of([(0, [1, 2, 3])]), {"forward", "feed_forward"}
    found: list[np.ndarray] = []

    def count(forward) -> int:
        cache = model.new_cache(1, 3)
        return trace_off.instructions(lambda: found.append(forward(model, batch, cache, np.arange(3))), names)

    more = count(Transformer.forward) - count(bare)
    assert np.array_equal(*found)
    assert 0 < more <= 20 * CONFIG.n_layers


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("layers.*", ["layers.0", "layers.1"]),
        ("layers.1.?", None),
        ("*", ["tok_embeddings", "norm", "logits"]),
        ("**.output", [f"layers.{i}.heads.{j}.output" for i in range(2) for j in range(4)]),
        ("layers.0.*norm", ["layers.0.attention_norm", "layers.0.ffn_norm"]),
        (["logits", "norm", "norm"], ["norm", "logits"]),
    ],
)
def test_a_star_is_one_part_of_a_name_and_two_are_anything(pattern, expected: list[str] | None):
    if expected is None:
        with pytest.raises(RequestError):
            choose_names(pattern, CONFIG)
    else:
        assert choose_names(pattern, CONFIG) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("layers.2.q", "'layers.2.q': there is no layer 2; the model has layers 0 to 1"),
        ("layers.0.heads.4.scores", "'layers.0.heads.4.scores': there is no head 4; a layer has heads 0 to 3"),
        ("layers.0.query", "no activation is called 'layers.0.query'; expected tok_embeddings, layers.0, norm, logits"),
        (["norm", "ln_f"], "no activation is called 'ln_f'"),
        ([3], "an activation's name is int; expected text such as 'layers.0.q'"),
    ],
)
def test_a_name_that_the_model_lacks_is_one_line(llama: Llama, names, message: str):
    with pytest.raises(RequestError) as caught:
        llama.trace([1, 2], names)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_the_numbers_for_llama_3_8b_in_the_docstrings():
    config = ModelConfig(4096, 32, 32, 8, 128, 14336, 128256)
    names = activation_names(config)
    pairs = [name for name in names if name.endswith((".scores", ".weights"))]
    assert len(names) == 3491 and 4 * len(pairs) == 8192  # bytes for each pair of tokens
    rows = set(names) - set(pairs)
    assert round(4 * sum(int(np.prod(activation_shape(name, config, 1))) for name in rows) / 1e6) == 9  # MB a token
