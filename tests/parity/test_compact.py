"""A compact reference of a few KB finds the differences that a whole one finds, and refuses what does not fit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llama3 import Llama
from llama3.checkpoint import load_folder
from llama3.errors import CheckpointError
from llama3.parity import compare_arrays, read_reference
from llama3.parity.compact import (
    Compact,
    compact_of,
    compare_compact,
    compare_file_compact,
    compare_model_compact,
    is_compact,
    read_compact,
    save_compact,
)  # fmt: skip
from llama3.parity.own_reference import own_reference
from llama3.parity.reference_file import Reference, save_reference
from llama3.parity.weights_hash import weights_hash
from tests.tiny import random_tensors, tiny_config, write_hf, write_meta

CONFIG = tiny_config(vocab_size=300)
TOKENS = np.random.RandomState(0).randint(0, 300, 20)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Llama:
    return Llama.load(write_hf(tmp_path_factory.mktemp("tiny"), CONFIG, random_tensors(CONFIG)))


@pytest.fixture(scope="module")
def whole(llama: Llama) -> Reference:
    return own_reference(llama.checkpoint, TOKENS)


@pytest.fixture(scope="module")
def compact(whole: Reference) -> Compact:
    return compact_of(whole)


def test_it_is_a_few_kb_and_returns_what_was_saved(compact: Compact, tmp_path: Path) -> None:
    save_compact(tmp_path / "c", compact)
    assert (tmp_path / "c").stat().st_size < 2_000 + 528 * len(TOKENS)
    found = read_compact(tmp_path / "c")
    for name in ("tokens", "ids", "logits", "log_sum"):
        assert np.array_equal(getattr(found, name), getattr(compact, name))
        assert getattr(found, name).dtype == getattr(compact, name).dtype
    for name in ("config", "dtype", "producer", "model", "weights"):
        assert getattr(found, name) == getattr(compact, name)


def test_the_ids_are_the_highest_logits_and_the_probabilities_are_right(whole: Reference, compact: Compact) -> None:
    for row, ids, logits, log_sum in zip(whole.logits, compact.ids, compact.logits, compact.log_sum):
        assert set(ids) == set(np.argsort(row)[-64:]) and np.array_equal(logits, np.sort(row)[::-1][:64])
        assert log_sum == pytest.approx(np.log(np.exp(row.astype(np.float64)).sum()), rel=1e-12)


def test_a_right_model_agrees_and_a_wrong_one_differs_where_it_does(llama: Llama, compact: Compact) -> None:
    report = compare_model_compact(llama.model, compact, weights=weights_hash(llama.checkpoint.weights))
    assert report.ok and not report.other_weights and report.top1.all() and report.kl.max() < 1e-9
    logits = llama.logits(TOKENS)
    logits[7] *= 1.001
    report = compare_compact(logits, compact)
    assert report.breaches == ["relative error of the logits over 1.0e-05 at 1 of 20 positions, first at 7"]
    assert "DIFFERS" in str(report) and report.as_dict()["ok"] is False
    logits[3, 5] = np.nan
    report = compare_compact(logits, compact)
    assert "at 2 of 20 positions, first at 3" in report.breaches[0]
    assert report.as_dict()["positions"]["kl"][3] is None


def test_the_divergence_is_at_most_that_of_whole_logits(whole: Reference, compact: Compact) -> None:
    logits = whole.logits + np.random.RandomState(1).standard_normal(whole.logits.shape).astype(np.float32) * 0.3
    real = compare_arrays(logits, whole).logits["kl"]
    found = compare_compact(logits, compact).kl
    assert np.all(found <= real + 1e-12) and np.all(found > 0)


def test_log_probabilities_are_compared_with_ours(llama: Llama, compact: Compact) -> None:
    """As vLLM gives them: no sum is known, and none is needed."""
    shifted = replace(
        compact, logits=(compact.logits - compact.log_sum[:, None]).astype(np.float32), log_sum=np.zeros(20)
    )
    assert compare_model_compact(llama.model, shifted).ok
    logits = llama.logits(TOKENS)
    logits[:, 0] += 3
    assert not compare_compact(logits, shifted).ok


def test_a_file_of_the_same_tokens_is_compared(whole: Reference, compact: Compact) -> None:
    assert compare_file_compact(whole, compact).ok
    with pytest.raises(CheckpointError, match="different tokens, 20 and 20 of them; the first difference is at 0"):
        compare_file_compact(replace(whole, tokens=whole.tokens[::-1].copy()), compact)
    part = replace(whole, logits=whole.logits[:2], positions=np.arange(2), activations={})
    with pytest.raises(CheckpointError, match="ours has logits at 2 of 20 positions; expected all"):
        compare_file_compact(part, compact)


def test_hashes_do_not_depend_on_the_layout_or_the_dtype_and_name_the_part(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG, dtype="bf16")
    hashes = weights_hash(load_folder(write_hf(tmp_path / "hf", CONFIG, tensors)).weights)
    assert list(hashes) == ["tok_embeddings", "layers.0", "layers.1", "norm", "output"]
    assert weights_hash(load_folder(write_meta(tmp_path / "meta", CONFIG, tensors)).weights) == hashes
    wide = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    assert weights_hash(load_folder(write_hf(tmp_path / "wide", CONFIG, wide)).weights) == hashes
    name = "model.layers.1.mlp.up_proj.weight"
    other = load_folder(write_hf(tmp_path / "other", CONFIG, wide | {name: wide[name] * 2}))
    changed = weights_hash(other.weights)
    assert [part for part in hashes if hashes[part] != changed[part]] == ["layers.1"]
    report = compare_compact(np.zeros((20, 300)), compact_of(own_reference(other, TOKENS)), hashes)
    assert report.other_weights == ["layers.1"] and "those of layers.1 are not the reference's" in str(report)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": np.full((20, 64), np.nan, np.float32)}, "logits or log_sum hold NaN or infinity; expected numbers"),
        ({"ids": np.full((20, 64), 300, np.int32)}, "ids holds ids outside 0 to 299"),
        (
            {"ids": np.zeros((20, 64), np.float32)},
            r"ids is float32 of shape \(20, 64\); expected int32 of shape \(20, 64",
        ),
        ({"tokens": np.array(3)}, r"tokens is int64 of shape \(\); expected int64 of shape \(T,\)"),
        ({"log_sum": np.zeros(19)}, r"log_sum is float64 of shape \(19,\); expected float64 of shape \(20,\)"),
        ({"dtype": "int8"}, "dtype is 'int8'; expected float64"),
    ],
)
def test_what_does_not_fit_is_one_line(compact: Compact, change: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        replace(compact, **change)


def test_bad_files_are_one_line(compact: Compact, whole: Reference, tmp_path: Path) -> None:
    save_compact(tmp_path / "c", compact)
    content = (tmp_path / "c").read_bytes()
    (tmp_path / "cut").write_bytes(content[:-50])
    with pytest.raises(CheckpointError, match="cut: cannot be read as a safetensors file"):
        read_compact(tmp_path / "cut")
    save_reference(tmp_path / "whole", whole)
    assert is_compact(tmp_path / "c") and not is_compact(tmp_path / "whole") and not is_compact(tmp_path / "no")
    with pytest.raises(CheckpointError, match="the format is 'llama3-reference', version '2'; expected 'llama3-comp"):
        read_compact(tmp_path / "whole")
    with pytest.raises(CheckpointError, match="not a reference file"):
        read_reference(tmp_path / "c")
    tensors = load_file(tmp_path / "c")
    del tensors["ids"]
    save_file(tensors, tmp_path / "lacks", {"format": "llama3-compact-reference", "version": "1"})
    with pytest.raises(CheckpointError, match="lacks: the tensor ids is missing"):
        read_compact(tmp_path / "lacks")
    part = replace(whole, logits=whole.logits[:2], positions=np.arange(2), activations={})
    with pytest.raises(CheckpointError, match="the reference has logits at 2 of 20 positions; expected all"):
        compact_of(part)
    with pytest.raises(CheckpointError, match=r"logits of shape \(19, 300\); expected \(20, 300\)"):
        compare_compact(np.zeros((19, 300)), compact)
