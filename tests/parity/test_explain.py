"""The fault in another implementation is named. tests/oracle/test_faults.py plants faults in torch; here a few are
planted in plain.py, so that the newcomer's tests need no torch."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llama3.checkpoint import Checkpoint, load_folder
from llama3.cli import main
from llama3.errors import CheckpointError
from llama3.parity import Reference, assert_close, explain, save_reference
from llama3.parity.cast_order import weight_before_cast
from llama3.parity.faults import fixed
from llama3.parity.planted import Fault, PlainModel
from tests.tiny import random_tensors, tiny_config, write_hf

TOKENS = np.random.RandomState(2).randint(0, 96, 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config()
    return write_hf(tmp_path_factory.mktemp("tiny"), config, random_tensors(config, 5))


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return load_folder(folder)


def written(
    checkpoint: Checkpoint, cause: str | Fault | None = None, tokens: np.ndarray = TOKENS, dtype: str = "float32"
) -> Reference:
    """What an implementation with the first fault of this kind gives."""
    c = checkpoint.config
    fault = cause if isinstance(cause, Fault) else next((f for f in fixed(c, False) if f.cause == cause), None)
    model = PlainModel(c, checkpoint.weights, tokens.tolist())
    logits = model.run(fault, dtype="float64" if dtype == "float32" else dtype).logits.astype(np.float32)
    return Reference(tokens, logits, np.arange(len(tokens)), c, dtype, "a test", "tiny")


CAUSES = "rope_layout missing_scale kv_head_order mask gate_up_swapped residual_missing tied_output"


@pytest.mark.parametrize("cause", CAUSES.split())
def test_a_fault_is_named(checkpoint: Checkpoint, cause: str) -> None:
    found = explain(written(checkpoint, cause), checkpoint.config, checkpoint.weights)
    assert str(found.cause).startswith(cause + ":") and str(found).startswith("CAUSE: " + cause)


def test_the_right_model_is_not_accused(checkpoint: Checkpoint) -> None:
    assert explain(written(checkpoint), checkpoint.config, checkpoint.weights).cause == "rounding"


def test_the_command_names_the_fault(
    checkpoint: Checkpoint, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right, wrong, page = (str(tmp_path / name) for name in ("right", "wrong", "page.html"))
    save_reference(right, written(checkpoint))
    save_reference(wrong, written(checkpoint, "gate_up_swapped"))
    assert main(["compare", right, wrong, "--explain", "--model", str(folder), "--html", page]) == 3
    assert "CAUSE: gate_up_swapped" in capsys.readouterr().out
    html = Path(page).read_text()
    assert "gate_up_swapped" in html and "<svg" in html and "http" not in html
    for other, code, cause in ((wrong, 3, "gate_up_swapped"), (right, 0, None)):
        assert main(["compare", right, other, "--explain", "--json", "--model", str(folder)]) == code
        found = json.loads(capsys.readouterr().out)["cause"]
        assert found is cause or found.startswith(str(cause))


@pytest.mark.parametrize(("tokens", "what"), [(TOKENS[1:], "missing"), (np.insert(TOKENS, 0, TOKENS[0]), "twice")])
def test_begin_of_text_missing_or_doubled_is_a_cause_and_no_error(
    checkpoint: Checkpoint,
    folder: Path,
    tmp_path: Path,
    tokens: np.ndarray,
    what: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    right, wrong = str(tmp_path / "right"), str(tmp_path / "wrong")
    save_reference(right, written(checkpoint))
    save_reference(wrong, written(checkpoint, tokens=tokens))
    assert main(["compare", right, wrong, "--explain", "--json", "--model", str(folder)]) == 3
    cause = json.loads(capsys.readouterr().out)["cause"]
    assert cause.startswith("bos:") and what in cause


def test_the_order_of_the_cast_is_named_from_bfloat16_logits(checkpoint: Checkpoint) -> None:
    c, w = checkpoint.config, checkpoint.weights
    assert explain(written(checkpoint, dtype="bfloat16"), c, w).cause == "rounding"
    found = explain(written(checkpoint, weight_before_cast("bfloat16"), dtype="bfloat16"), c, w)
    assert str(found.cause).startswith("cast_order:")


@pytest.mark.parametrize(("shift", "how"), [(1, "before the tokens"), (0, "rows are off by one")])
def test_a_begin_of_text_that_the_implementation_adds_is_named(checkpoint: Checkpoint, shift: int, how: str) -> None:
    fault = Fault("bos", "", tokens=lambda tokens: [7, *tokens], shift=shift)
    found = explain(written(checkpoint, fault), checkpoint.config, checkpoint.weights, bos=7)
    assert str(found.cause).startswith("bos: ") and str(found.cause).endswith(how)


def test_another_output_matrix_is_told_by_the_rows_of_logits_that_it_explains(checkpoint: Checkpoint) -> None:
    c, w = checkpoint.config, checkpoint.weights
    tokens = np.arange(64) * 37 % c.vocab_size
    found = explain(written(checkpoint, Fault("", "", output=lambda w: w.output[::-1]), tokens), c, w)
    assert str(found.cause).startswith("tied_output: ")


def test_a_model_that_does_not_give_the_reference_is_refused(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the other side would be accused by the wrong model."""
    right, wrong = str(tmp_path / "right"), str(tmp_path / "wrong")
    save_reference(right, written(checkpoint))
    save_reference(wrong, written(checkpoint, "gate_up_swapped"))
    other = write_hf(tmp_path / "other", checkpoint.config, random_tensors(checkpoint.config, 6))
    assert main(["compare", right, wrong, "--explain", "--model", str(other)]) == 1
    out = capsys.readouterr()
    assert "does not give the reference's own numbers: at position" in out.err and "CAUSE" not in out.out
    assert len(out.err.strip().splitlines()) == 1


def test_assert_close_names_the_fault(checkpoint: Checkpoint, folder: Path) -> None:
    with pytest.raises(AssertionError, match="CAUSE: missing_scale"):
        assert_close(written(checkpoint, "missing_scale").logits, written(checkpoint), model=folder)


def test_rows_that_are_not_finite_are_not_called_rounding(checkpoint: Checkpoint) -> None:
    """The other rows are right, so they alone would be rounding."""
    r = written(checkpoint)
    logits = r.logits.copy()
    logits[[5, 7], 3] = np.nan, np.inf
    found = explain(replace(r, logits=logits), checkpoint.config, checkpoint.weights)
    assert found.cause == "unknown: logits are not finite"
    assert "2 of 12 rows hold, first at position 5" in str(found)


def test_rounding_alone_is_the_cause_if_a_limit_is_exceeded(
    checkpoint: Checkpoint, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exact, rounded = str(tmp_path / "exact"), str(tmp_path / "rounded")
    save_reference(exact, written(checkpoint))
    save_reference(rounded, written(checkpoint, dtype="bfloat16"))
    assert main(["compare", exact, rounded, "--explain", "--json", "--model", str(folder)]) == 3
    assert json.loads(capsys.readouterr().out)["cause"] == "rounding"


def test_a_reference_with_nan_is_no_measure(checkpoint: Checkpoint) -> None:
    r = written(checkpoint)
    logits = r.logits.copy()
    logits[5, 3] = np.nan
    with pytest.raises(CheckpointError, match="the logits of the reference hold NaN or infinity, first at position 5"):
        explain(r, checkpoint.config, checkpoint.weights, right=replace(r, logits=logits))


def test_logits_that_are_all_nan_are_an_error(checkpoint: Checkpoint) -> None:
    r = written(checkpoint)
    with pytest.raises(CheckpointError, match="none of the logits is finite"):
        explain(replace(r, logits=r.logits * np.float32(np.nan)), checkpoint.config, checkpoint.weights)
