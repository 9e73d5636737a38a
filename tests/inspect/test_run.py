"""What `inspect` sees in the demo: the facts that docs/inspect.md tells, and the properties of any model."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from llama3 import Llama, RequestError, plain
from llama3.checkpoint import load_folder
from llama3.inspect import lens
from llama3.inspect.run import Inspection, inspect, see_inside
from llama3.inspect.without import all_parts, parse_part, switch_off
from tests.inspect.conftest import ASK
from tests.tiny import random_tensors, tiny_config, write_hf


def at(seen: Inspection, text: str) -> int:
    return [token.text for token in seen.tokens].index(text)


def test_one_head_looks_at_the_subject_and_without_it_the_answer_is_about_something_else(seen: Inspection):
    assert seen.attention[0, 1, seen.n_prompt - 1, at(seen, " RoPE")] == pytest.approx(0.90, abs=0.005)
    assert seen.answer.text.startswith("RoPE, rotary position embedding")
    (off,) = seen.ablations
    assert off.parts == [(0, 1)] and off.same == 0 and off.loss > 0.1
    assert off.text.startswith("A large language model predicts")


def test_the_lens_shows_rot_become_rotary_in_the_last_layer(seen: Inspection):
    here = at(seen, " rot")
    likeliest = {
        point: (seen.vocabulary[int(seen.lens.tokens[s, here, 0])], float(seen.lens.probabilities[s, here, 0]))
        for s, point in enumerate(seen.lens.points)
    }
    assert likeliest["layers.2"][0] == likeliest["layers.3.attention_residual"][0] == "ates"
    assert likeliest["layers.3"] == ("ary", pytest.approx(1, abs=0.01))


def test_the_first_token_is_the_attention_sink_and_its_residual_stream_the_largest(seen: Inspection):
    assert all(layer[:, 2:, 0].mean() > 0.02 for layer in seen.attention)
    assert seen.norms[-1, 0] == pytest.approx(16.9, abs=0.1) and seen.norms[-1].argmax() == 0


def test_attention_weights_sum_to_one_and_none_is_on_a_later_token(seen: Inspection):
    T = len(seen.tokens)
    assert seen.attention.shape == (4, 4, T, T)
    np.testing.assert_allclose(seen.attention.sum(axis=-1), 1, atol=1e-5)
    assert not np.triu(seen.attention, 1).any()


def test_tokens_have_their_ids_and_bytes_and_the_answer_its_steps(seen: Inspection, demo: Llama):
    assert [token.id for token in seen.tokens] == demo.encode_chat(ASK) + seen.answer.tokens
    assert b"".join(token.bytes for token in seen.tokens[seen.n_prompt :]).decode() == seen.answer.text
    assert [step.token for step in seen.steps] == [piece.token for piece in seen.answer.pieces]
    assert [step.position for step in seen.steps] == list(range(seen.n_prompt, seen.n_prompt + 40))


def test_the_stop_token_is_a_step_and_no_token_of_the_text(demo: Llama):
    seen = inspect(demo, ASK, temperature=0)
    assert seen.answer.finish_reason == "stop" and len(seen.steps) == len(seen.answer.tokens) + 1
    assert seen.steps[-1].token in demo.checkpoint.stop_ids and seen.steps[-1].position == len(seen.tokens)


def test_probabilities_are_those_of_the_fast_model(seen: Inspection, demo: Llama):
    logits = demo.logits([token.id for token in seen.tokens])[seen.n_prompt - 1 : -1].astype(np.float64)
    p = plain.softmax(logits)  # (40, vocab_size)
    np.testing.assert_allclose([step.probability for step in seen.steps], p.max(axis=1), atol=1e-4)
    np.testing.assert_allclose([step.entropy for step in seen.steps], -(p * np.log(p)).sum(axis=1), atol=1e-3)


def test_a_part_that_is_switched_off_adds_nothing_and_the_others_add_what_they_did(demo: Llama):
    config, weights, ids = demo.config, demo.checkpoint.weights, demo.encode("What is RoPE?")
    found: dict[str, np.ndarray] = {}
    plain.forward(ids, config, weights, found.__setitem__)
    without: dict[str, np.ndarray] = {}
    plain.forward(ids, config, switch_off(weights, [(0, 1), (0, "ffn")], config), without.__setitem__)
    head = found["layers.0.heads.1.weights"] @ found["layers.0.v"][:, 0]  # (T, head_dim)
    columns = weights.layers[0].wo[:, config.head_dim : 2 * config.head_dim].astype(np.float64)  # (dim, head_dim)
    np.testing.assert_allclose(
        without["layers.0.attention"], found["layers.0.attention"] - head @ columns.T, atol=1e-12
    )
    assert not without["layers.0.feed_forward"].any()
    assert weights.layers[0].w2.any()  # the model itself is as before


def test_the_residual_stream_is_the_sum_of_what_the_layers_add(demo: Llama):
    ids, found = demo.encode("The KV cache"), {}
    plain.forward(ids, demo.config, demo.checkpoint.weights, found.__setitem__)
    stream, _, norm = see_inside(ids, demo.config, demo.checkpoint.weights)
    assert list(stream)[:3] == ["tok_embeddings", "layers.0.attention_residual", "layers.0"] and len(stream) == 9
    added = found["tok_embeddings"] + found["layers.0.attention"]
    np.testing.assert_allclose(stream["layers.0.attention_residual"], added, rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(norm, found["norm"])


def test_each_part_of_the_demo_can_be_named(demo: Llama):
    names = [f"{layer}.{part}" for layer, part in all_parts(demo.config)]
    assert len(names) == 20 and [parse_part(name, demo.config) for name in names] == all_parts(demo.config)


@pytest.mark.parametrize(
    "name, message",
    [
        ("4.0", "no layer 4; this model has layers 0 to 3"),
        ("0.4", "no head 0.4; this model has heads 0 to 3"),
        ("0", "'0' is not a part of the model; expected LAYER.HEAD"),
        ("-1.0", "'-1.0' is not a part"),
        ("0.ff", "expected LAYER.HEAD, such as 0.1, or LAYER.ffn"),
    ],
)
def test_a_part_that_does_not_exist_is_refused_in_one_line(demo: Llama, name: str, message: str):
    with pytest.raises(RequestError) as error:
        parse_part(name, demo.config)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_text_whose_attention_weights_do_not_fit_is_refused(demo: Llama, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("llama3.inspect.run.MEMORY", 4 * 16 * 20**2)
    with pytest.raises(RequestError, match="the text has 30 tokens; the attention weights of at most 20 fit"):
        inspect(demo, [7] * 29)
    assert inspect(demo, [7] * 9, max_tokens=3).attention.shape == (4, 4, 12, 12)


def test_one_matrix_is_converted_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """So a model whose weights leave little memory can be inspected. The 8B's largest takes 0.5 GB in float64."""
    config = tiny_config(dim=256, hidden_dim=1024, n_layers=4, vocab_size=4096)
    weights = load_folder(write_hf(tmp_path, config, random_tensors(config, dtype="bf16"))).weights
    monkeypatch.setattr(lens, "OUTPUTS", 512)
    tracemalloc.start()
    stream, _, _ = see_inside(range(8), config, weights)
    lens.read_lens(stream, range(8), config, weights)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 1.5 * 8 * config.hidden_dim * config.dim


def test_what_a_step_cannot_show_is_refused(demo: Llama):
    with pytest.raises(RequestError, match="inspect takes no json_schema; expected max_tokens, temperature"):
        inspect(demo, ASK, json_schema={})
    with pytest.raises(RequestError, match="max_tokens is 0"):
        inspect(demo, ASK, max_tokens=0)
