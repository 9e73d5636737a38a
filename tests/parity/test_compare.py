"""A comparison finds a wrong weight or constant, and names the first activation that it changes.

The reference is the model's own output: unchanged, it must agree exactly; with one fault planted, it must not.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llama3 import plain
from llama3.checkpoint import load_folder
from llama3.config import ModelConfig
from llama3.errors import CheckpointError
from llama3.model.batch import Batch
from llama3.model.transformer import Transformer
from llama3.model.weights import Weights
from llama3.parity import Reference, assert_close, compare, compare_arrays, compare_files, compare_model, save_reference
from tests.parity.test_reference_file import at_positions, reference
from tests.tiny import random_tensors, tiny_config, write_hf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Transformer:
    config = tiny_config()
    checkpoint = load_folder(write_hf(tmp_path_factory.mktemp("tiny"), config, random_tensors(config, 5)))
    return Transformer(checkpoint.config, checkpoint.weights)


@pytest.fixture(scope="module")
def own(model: Transformer) -> Reference:
    """The model's own output for 30 tokens: a comparison with it must find no difference."""
    tokens, activations = np.random.RandomState(1).randint(0, 96, 30), {}
    cache = model.new_cache(1, 30)
    batch = Batch.of([(cache.allocate(), tokens)])
    logits = model.forward(batch, cache, np.arange(30), lambda name, value: activations.update({name: value.copy()}))
    return Reference(tokens, logits, np.arange(30), model.config, "float32", "ourselves", "tiny", activations)


def test_a_model_agrees_with_itself(model: Transformer, own: Reference) -> None:
    report = compare_model(model, own)
    assert report.ok and report.logits["relative"].max() == 0 and not report.config_differences
    assert list(report.activations) == list(own.activations) and len(own.activations) == 36


@pytest.mark.parametrize("rows", [1, 7, 10, 29])
def test_the_text_may_be_run_in_chunks(
    model: Transformer, own: Reference, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in chunks that hold none of the reference's positions."""
    monkeypatch.setattr(compare, "MODEL_ROWS", rows)
    for chosen in (own, at_positions(own, 0, 9, 10, 29), at_positions(own, 29)):
        report = compare_model(model, chosen)
        assert report.ok, f"\n{report}"
        assert len(report.logits) == len(chosen.positions) == len(report.activations["norm"])
        assert len(report.activations["layers.1"]) == 30


def layer_1(**changes: Callable[[np.ndarray], np.ndarray]) -> Callable[[Weights], Weights]:
    def change(weights: Weights) -> Weights:
        layer = weights.layers[1]
        layer = replace(layer, **{name: how(getattr(layer, name)) for name, how in changes.items()})
        return replace(weights, layers=[weights.layers[0], layer])

    return change


@pytest.mark.parametrize(
    ("spoil", "first"),
    [
        (lambda w: replace(w, tok_embeddings=w.tok_embeddings + 1e-3), "tok_embeddings"),
        (layer_1(attention_norm=lambda a: a * 1.001), "layers.1.attention_norm"),
        (layer_1(wq=lambda a: a * 1.01), "layers.1.q"),
        (layer_1(wk=lambda a: a[::-1]), "layers.1.k"),
        (layer_1(wv=lambda a: a * 1.001), "layers.1.v"),
        (layer_1(wo=lambda a: a * 1.001), "layers.1.attention"),
        (layer_1(ffn_norm=lambda a: a * 1.001), "layers.1.ffn_norm"),
        (layer_1(w1=lambda a: a * 1.001), "layers.1.gate"),
        (layer_1(w2=lambda a: a * 1.001), "layers.1.feed_forward"),
        (layer_1(w3=lambda a: a * 1.001), "layers.1.up"),
        (lambda w: replace(w, norm=w.norm * 1.001), "norm"),
        (lambda w: replace(w, output=w.output * 1.001), None),
    ],
)
def test_a_wrong_weight_is_first_seen_where_it_is_used(
    model: Transformer, own: Reference, spoil: Callable[[Weights], Weights], first: str | None
) -> None:
    report = compare_model(Transformer(model.config, spoil(model.weights)), own)
    assert not report.ok and report.first_activation == first
    assert any("relative error of the logits" in breach for breach in report.breaches)


@pytest.mark.parametrize(
    ("change", "first", "position"),
    [({"rope_theta": 10_000.0}, "layers.0.q_rope", 1), ({"norm_eps": 1e-3}, "layers.0.attention_norm", 0)],
)
def test_a_wrong_constant_is_reported_beside_the_numbers(
    model: Transformer, own: Reference, change: dict[str, float], first: str, position: int
) -> None:
    """Position 0 is not rotated, so a fault in RoPE begins at position 1."""
    report = compare_model(Transformer(replace(model.config, **change), model.weights), own)
    ((name, value),) = change.items()
    assert report.config_differences == [f"{name} is {value} in ours, {getattr(own.config, name)} in the reference"]
    assert report.breaches[-1].startswith(
        f"the first activation that differs is {first}, first at position {position} "
    )
    assert report.config_differences[0] in str(report)


def test_another_config_with_the_same_numbers_is_ok(model: Transformer, own: Reference) -> None:
    longer = replace(own, config=replace(own.config, max_seq_len=4096, tied_embeddings=True))
    report = compare_model(model, longer)
    assert report.ok and report.config_differences == ["tied_embeddings is False in ours, True in the reference"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (tiny_config(vocab_size=97), "vocab_size is 96 in ours and 97 in the reference: these are different models"),
        (tiny_config(dim=64), "dim is 48 in ours and 64 in the reference"),
        (tiny_config(n_layers=3), "n_layers is 2 in ours and 3 in the reference"),
    ],
)
def test_another_model_is_an_error(model: Transformer, config: ModelConfig, expected: str) -> None:
    other = Reference(
        np.zeros(2, int), np.zeros((2, config.vocab_size), np.float32), np.arange(2), config, "float32", "", ""
    )
    with pytest.raises(CheckpointError, match=expected):
        compare_model(model, other)


def test_scores_and_weights_are_compared_though_a_model_never_holds_them_whole(
    model: Transformer, own: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: dict[str, np.ndarray] = {}
    plain.forward(own.tokens, model.config, model.weights, lambda name, value: values.update({name: value}))
    by_head = {name: value.astype(np.float32) for name, value in values.items() if ".heads." in name}
    monkeypatch.setattr(compare, "MODEL_ROWS", 7)
    report = compare_model(model, replace(own, activations=by_head))
    assert report.ok and list(report.activations) == list(by_head), f"\n{report}"
    by_head["layers.1.heads.3.scores"][20, 5] += 0.1
    report = compare_model(model, replace(own, activations=by_head))
    assert report.breaches[0].startswith("the first activation that differs is layers.1.heads.3.scores, first at pos")


def test_activations_of_another_shape_are_an_error(model: Transformer, own: Reference) -> None:
    fewer = replace(own.config, n_heads=2, head_dim=32, n_kv_heads=1)
    q = {"layers.0.q": own.activations["layers.0.q"].reshape(30, 2, 32)}
    with pytest.raises(
        CheckpointError, match=r"layers.0.q of shape \(30, 4, 16\); expected \(30, 2, 32\), as in the r"
    ):
        compare_model(model, replace(own, config=fewer, activations=q))


def test_more_tokens_than_the_context_are_an_error(model: Transformer, own: Reference) -> None:
    short = Transformer(replace(model.config, max_seq_len=29), model.weights)
    with pytest.raises(CheckpointError, match="the reference has 30 tokens, and the model's context window holds 29"):
        compare_model(short, own)


def test_files_are_compared_at_the_references_positions(tmp_path: Path) -> None:
    r = reference()
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    save_reference(theirs, at_positions(r, 1, 3))
    save_reference(ours, replace(r, logits=r.logits * np.array([[9], [1], [9], [1]], np.float32), model="mine"))
    report = compare_files(ours, theirs, rtol=0.0)
    assert report.ok and report.ours == "mine (a producer, bfloat16)"
    assert report.as_dict()["positions"]["position"] == [1, 3] and len(report.activations) == 27
    with pytest.raises(CheckpointError, match="ours has no logits at position 0, but the reference has"):
        compare_files(theirs, ours)


def test_only_activations_that_both_files_hold_are_compared_and_the_others_named() -> None:
    r = reference()
    ours = replace(r, activations={n: r.activations[n] for n in ("norm", "layers.0")})
    theirs = replace(r, activations={n: r.activations[n] for n in ("tok_embeddings", "layers.0")})
    report = compare_files(ours, theirs)
    assert list(report.activations) == ["layers.0"]
    lacks = ["ours lacks tok_embeddings that the reference has", "the reference lacks norm that ours has"]
    assert report.not_compared == report.as_dict()["not_compared"] == lacks and lacks[0] in str(report)
    assert compare_files(ours, r).not_compared == ["ours lacks tok_embeddings and 24 more that the reference has"]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([3, 1, 5, 0], "4 and 4 of them; the first difference is at 2: 5 in ours, 6 in the reference"),
        ([3, 1, 6, 0, 0], "5 and 4 of them; the first difference is at 4: 0 in ours, none in the reference"),
    ],
)
def test_other_tokens_are_an_error(tokens: list[int], expected: str) -> None:
    n = len(tokens)
    ours = reference(
        tokens=np.array(tokens), positions=np.arange(n), logits=np.zeros((n, 7), np.float32), activations={}
    )
    with pytest.raises(CheckpointError, match=f"the files hold different tokens, {expected}"):
        compare_files(ours, reference())


def test_arrays_may_hold_every_position_or_only_the_references(tmp_path: Path) -> None:
    r = reference()
    save_reference(tmp_path / "r", at_positions(r, 1, 3))
    for logits in (r.logits, r.logits[[1, 3]], r.logits.astype(np.float64), r.logits.tolist()):
        assert_close(logits, tmp_path / "r", rtol=0.0)
        assert compare_arrays(logits, tmp_path / "r").logits["relative"].tolist() == [0, 0]


@pytest.mark.parametrize("shape", [(7,), (1, 4, 7), (4, 6), (3, 7), (0, 7)])
def test_a_shape_that_does_not_fit_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError, match=r"logits of shape .*; expected \(4, 7\), as in the reference"):
        assert_close(np.zeros(shape), reference())


def test_an_activation_that_the_reference_lacks_is_an_error() -> None:
    r = reference()
    with pytest.raises(CheckpointError, match=r"the reference has no activation 'layers\.7'; it has tok_embeddings, "):
        assert_close(r.logits, r, activations={"layers.7": r.activations["norm"]})
    with pytest.raises(CheckpointError, match="activation norm of shape"):
        assert_close(r.logits, r, activations={"norm": r.activations["norm"][:2]})


def test_assert_close_shows_the_report() -> None:
    r = reference()
    logits = r.logits.copy()
    logits[2, 4] += 3
    with pytest.raises(AssertionError) as caught:
        assert_close(logits, r, activations=r.activations)
    assert str(compare_arrays(logits, r, activations=r.activations)) in str(caught.value)
    assert "most likely at position 2" in str(caught.value) and "DIFFERS" in str(caught.value)
