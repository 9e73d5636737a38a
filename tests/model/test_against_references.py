"""The transformer against what transformers computed in float32, read from committed files: no torch is needed here."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llama3.checkpoint import load_folder
from llama3.model.transformer import Transformer
from llama3.parity import compare_model, read_reference
from tests.reference_cases import CASES, LONG, REFERENCES, Case
from tests.tiny import DTYPES


def test_every_file_has_its_case() -> None:
    assert {path.name for path in REFERENCES.iterdir()} == {case.path.name for case in CASES}
    assert len(CASES) >= 14


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_weights_are_those_that_the_file_was_made_from(case: Case) -> None:
    assert read_reference(case.path).model == case.label(case.tensors()), "the generator in tests/tiny.py has changed"


@pytest.mark.parametrize(
    ("case", "layout"),
    [(case, layout) for case in CASES for layout in case.layouts],
    ids=lambda value: getattr(value, "name", value),
)
def test_every_row_is_within_1e_5(case: Case, layout: str, tmp_path: Path) -> None:
    reference = read_reference(case.path)
    checkpoint = load_folder(case.write(tmp_path, case.tensors(), layout))
    assert len(checkpoint.files) == (case.shards if layout == "hf" else 1)
    assert checkpoint.weights.layers[0].wq.dtype == DTYPES[case.dtype]
    model = Transformer(checkpoint.config, checkpoint.weights)
    report = compare_model(model, reference, rtol=1e-5)
    assert report.ok, f"\n{report}"
    # Not a comparison of nothing: all rows are there, and all activations.
    assert len(report.logits) == len(case.positions or range(case.length))
    assert len(report.activations) == case.activations * (2 + 3 * case.config.n_layers)
    # Meta's form has no tied embeddings.
    assert all(layout == "meta" and line.startswith("tied") for line in report.config_differences)


SCALED = [case for case in CASES if case.config.rope_scaling is not None]


@pytest.mark.parametrize("case", SCALED, ids=lambda case: case.name)
def test_a_model_without_its_rope_scaling_is_noticed(case: Case, tmp_path: Path) -> None:
    checkpoint = load_folder(case.write(tmp_path, case.tensors()))
    config = replace(checkpoint.config, rope_scaling=None)
    reference = read_reference(case.path)
    if case.length == LONG:  # the first thousand tokens tell it as well, and sooner
        kept = reference.positions < 1024
        reference = replace(
            reference,
            tokens=reference.tokens[:1024],
            positions=reference.positions[kept],
            logits=reference.logits[np.flatnonzero(kept)],
        )
    report = compare_model(Transformer(config, checkpoint.weights), reference)
    assert not report.ok and report.config_differences[0].startswith("rope_scaling")
