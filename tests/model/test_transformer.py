"""The logits equal one full forward pass, however the rows are divided into steps, and equal those of plain.py."""

import ast
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llama3.model
from llama3 import plain
from llama3.activation_names import activation_shape
from llama3.checkpoint import load_folder
from llama3.config import ModelConfig, RopeScaling
from llama3.cpu_model import CpuModel
from llama3.errors import LogitsError
from llama3.model.batch import Batch
from llama3.model.transformer import Transformer
from llama3.sampler import Sample, SequenceSampler
from llama3.sampling_params import SamplingParams
from tests.tiny import random_tensors, tiny_config, write_hf

LONG = 8192
BAR = 1e-5


def worst_row(a: np.ndarray, b: np.ndarray) -> float:
    """The largest relative error of any row: a whole tensor's could hide one that is wrong."""
    assert a.shape == b.shape and len(a)
    return float(np.max(np.linalg.norm(a.astype(np.float64) - b, axis=-1) / np.linalg.norm(b, axis=-1)))


def tokens_of(config: ModelConfig, n: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, config.vocab_size, n).astype(np.int32)


def full_forward(model: Transformer, tokens: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    cache = model.new_cache(1, len(tokens))
    rows = np.arange(len(tokens)) if rows is None else rows
    return model.forward(Batch.of([(cache.allocate(), tokens)]), cache, rows)


def load(folder: Path, config: ModelConfig) -> Transformer:
    return CpuModel(config, load_folder(write_hf(folder, config, random_tensors(config, dtype="bf16"))).weights)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Transformer:
    return load(tmp_path_factory.mktemp("tiny"), tiny_config(n_heads=8))


@pytest.fixture(scope="module")
def long_model(tmp_path_factory) -> Transformer:
    """As narrow as it can be: 8,192 tokens cost 34 million scores a head."""
    scaling = RopeScaling(original_max_seq_len=1024)
    config = tiny_config(max_seq_len=LONG, n_layers=1, n_heads=2, n_kv_heads=1, rope_scaling=scaling)
    return load(tmp_path_factory.mktemp("long"), config)


@pytest.fixture(scope="module")
def long_logits(long_model) -> tuple[np.ndarray, np.ndarray]:
    """One full forward over 8,192 tokens: all of their logits."""
    tokens = tokens_of(long_model.config, LONG)
    return tokens, full_forward(long_model, tokens)


@settings(max_examples=30)
@given(st.data())
def test_logits_and_traced_activations_are_those_of_plain(tmp_path_factory, data):
    draw = data.draw
    n_kv_heads = draw(st.sampled_from([1, 2, 3]))
    config = tiny_config(
        n_layers=draw(st.integers(1, 3)),
        n_heads=n_kv_heads * draw(st.sampled_from([1, 2, 4])),
        n_kv_heads=n_kv_heads,
        rope_scaling=draw(st.sampled_from([None, RopeScaling(original_max_seq_len=32)])),
    )
    model = load(tmp_path_factory.mktemp("random"), config)
    tokens = tokens_of(config, draw(st.integers(1, 150)), seed=draw(st.integers(0, 9)))
    expected: dict[str, np.ndarray] = {}
    traced: dict[str, np.ndarray] = {}
    cache = model.new_cache(1, len(tokens))
    batch = Batch.of([(cache.allocate(), tokens)])
    logits = model.forward(batch, cache, np.arange(len(tokens)), lambda name, value: traced.update({name: value}))
    plain_logits = plain.forward(tokens, config, model.weights, lambda name, value: expected.update({name: value}))
    assert worst_row(logits, plain_logits) <= BAR
    by_head = {name for name in expected if name.endswith((".scores", ".weights"))}  # never whole in this model
    assert list(traced) == [name for name in expected if name not in {*by_head, "logits"}]
    assert all(worst_row(value, expected[name]) <= BAR for name, value in traced.items())


def test_token_by_token_equals_one_full_forward(model):
    tokens = tokens_of(model.config, 200)
    cache = model.new_cache(1, 200)
    slot = cache.allocate()
    steps = [model.forward(Batch.of([(slot, tokens[i : i + 1])]), cache, np.arange(1)) for i in range(200)]
    assert worst_row(np.concatenate(steps), full_forward(model, tokens)) <= BAR


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 127, 128, 129, 511, 512, 513, 2048, LONG - 8])
def test_prefill_then_decode_equals_one_full_forward(long_model, long_logits, n):
    model, (tokens, expected) = long_model, long_logits
    cache = model.new_cache(1, LONG)
    slot = cache.allocate()
    got = [model.forward(Batch.of([(slot, tokens[:n])]), cache, np.array([n - 1]))]
    got += [model.forward(Batch.of([(slot, tokens[i : i + 1])]), cache, np.arange(1)) for i in range(n, n + 8)]
    assert worst_row(np.concatenate(got), expected[n - 1 : n + 8]) <= BAR


@pytest.mark.parametrize("chunk", [500, 512])
def test_a_prompt_in_chunks_equals_one_full_forward(long_model, long_logits, chunk):
    model, (tokens, expected) = long_model, long_logits
    cache = model.new_cache(1, LONG)
    slot = cache.allocate()
    chunks = [tokens[i : i + chunk] for i in range(0, LONG, chunk)]
    got = [model.forward(Batch.of([(slot, part)]), cache, np.arange(len(part))) for part in chunks]
    assert worst_row(np.concatenate(got), expected) <= BAR


def test_a_long_sequence_is_not_changed_by_a_long_neighbour(long_model, long_logits):
    tokens, expected = long_logits
    other = tokens_of(long_model.config, LONG, seed=1)
    cache = long_model.new_cache(2, LONG)
    for begin, end in [(0, 1), (1, 4000), (4000, 8180), (8180, LONG)]:
        batch = Batch.of([(1, other[begin:end]), (0, tokens[begin:end])])
        rows = np.arange(len(batch.tokens))[batch.spans[1]][-8:]
        assert worst_row(long_model.forward(batch, cache, rows), expected[begin:end][-8:]) <= BAR


def test_a_step_s_sampler_that_fails_does_not_stop_the_others(model):
    cache = model.new_cache(2, 16)
    greedy = SamplingParams(temperature=0)
    vocab_size = model.config.vocab_size
    nothing = SequenceSampler(greedy, [1], vocab_size, mask=lambda: np.zeros(vocab_size, bool))
    batch = Batch.of([(0, [1]), (1, [2])])
    failed, drawn = model.step(batch, cache, [nothing, SequenceSampler(greedy, [2], vocab_size)]).samples()
    assert isinstance(failed, LogitsError) and isinstance(drawn, Sample)


@settings(max_examples=25)
@given(st.data())
def test_a_sequence_is_not_changed_by_its_neighbours(model, data):
    """Any number of sequences, cut into any chunks, each step mixing chunks of several: each is as if alone."""
    n = data.draw(st.integers(1, 4))
    sequences = [tokens_of(model.config, data.draw(st.integers(1, 60)), seed) for seed in range(n)]
    cache = model.new_cache(n, 60)
    slots = [cache.allocate() for _ in range(n)]
    got: list[list[np.ndarray]] = [[] for _ in range(n)]
    while todo := [i for i in range(n) if cache.lengths[slots[i]] < len(sequences[i])]:
        chosen = data.draw(st.lists(st.sampled_from(todo), min_size=1, unique=True))
        parts = []
        for i in chosen:
            start = cache.lengths[slots[i]]
            parts.append((slots[i], sequences[i][start : start + data.draw(st.integers(1, 20))]))
        batch = Batch.of(parts)
        logits = model.forward(batch, cache, np.arange(len(batch.tokens)))
        for i, span in zip(chosen, batch.spans):
            got[i].append(logits[span])
    for i in range(n):
        assert worst_row(np.concatenate(got[i]), full_forward(model, sequences[i])) <= BAR


def test_a_truncated_sequence_continues_as_if_the_rest_had_never_been(model):
    tokens = tokens_of(model.config, 90)
    cache = model.new_cache(2, 120)
    slot, other = cache.allocate(), cache.allocate()
    model.forward(Batch.of([(slot, tokens_of(model.config, 100, seed=1))]), cache, np.arange(0))
    cache.truncate(slot, 0)
    model.forward(Batch.of([(slot, tokens[:70])]), cache, np.arange(0))
    cache.copy_prefix(slot, other, 40)
    cache.truncate(slot, 50)
    expected = full_forward(model, tokens)
    assert worst_row(model.forward(Batch.of([(slot, tokens[50:])]), cache, np.arange(40)), expected[50:]) <= BAR
    assert worst_row(model.forward(Batch.of([(other, tokens[40:])]), cache, np.arange(50)), expected[40:]) <= BAR


def test_logits_are_given_for_the_requested_rows_only(model):
    tokens = tokens_of(model.config, 10)
    expected = full_forward(model, tokens)
    assert worst_row(full_forward(model, tokens, np.array([9, 2])), expected[[9, 2]]) <= BAR
    assert full_forward(model, tokens, np.arange(0)).shape == (0, model.config.vocab_size)


def test_logits_are_float32_whatever_the_file_holds(tmp_path):
    config = tiny_config(tied_embeddings=True)
    for dtype in ("bf16", "fp16", "fp32"):
        weights = load_folder(write_hf(tmp_path / dtype, config, random_tensors(config, dtype=dtype))).weights
        seen = []
        model = Transformer(config, weights)
        cache = model.new_cache(1, 4)
        batch = Batch.of([(cache.allocate(), [1, 2, 3])])
        model.forward(batch, cache, np.arange(3), trace=lambda name, value, seen=seen: seen.append(value.dtype))
        assert set(seen) == {np.dtype(np.float32)} and full_forward(model, batch.tokens).dtype == np.float32


def test_a_trace_has_a_row_for_each_token_of_all_sequences(model):
    shapes = {}
    cache = model.new_cache(2, 4)
    batch = Batch.of([(cache.allocate(), [1, 2, 3]), (cache.allocate(), [4, 5])])
    model.forward(batch, cache, np.arange(2), trace=lambda name, value: shapes.update({name: value.shape}))
    assert shapes.pop("norm") == (2, model.config.dim)  # only for the rows whose logits are wanted
    assert shapes == {name: activation_shape(name, model.config, 5) for name in shapes}


def test_a_step_draws_for_sequences_with_a_sampler(model):
    cache = model.new_cache(2, 16)
    a, b = cache.allocate(), cache.allocate()
    batch = Batch.of([(a, [1, 2, 3]), (b, [4, 5])])
    greedy = SequenceSampler(SamplingParams(temperature=0), [4, 5], model.config.vocab_size)
    first, second = model.step(batch, cache, [None, greedy]).samples()
    assert first is None and second is not None
    assert second.token == full_forward(model, np.array([4, 5], np.int32))[-1].argmax()


def test_the_forward_pass_stays_short_enough_to_read():
    folder = Path(llama3.model.__file__).parent
    tree = ast.parse((folder / "transformer.py").read_text())
    (forward,) = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "forward")
    assert forward.end_lineno - forward.lineno + 1 <= 45
    fast = ("linear.py", "linear_choice.py", "threads.py", "pages.py")
    fast += ("quantised.py", "quantised_product.py", "summed.py", "split.py")  # other kinds of matrices
    files = [file for file in folder.glob("*.py") if file.name not in fast]
    assert len(files) > 7 and sum(len(file.read_text().splitlines()) for file in files) <= 480
