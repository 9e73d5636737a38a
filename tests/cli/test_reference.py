"""`llama3 reference`: what it writes is what the model computes, and `llama3 compare` takes it."""

from pathlib import Path

import pytest

from llama3.cli import main
from llama3.llama import Llama
from llama3.parity import read_reference


@pytest.fixture(autouse=True)
def model(talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA3_MODEL", str(talker))


def test_a_text_becomes_a_reference_with_the_activations_asked_for(talker: Path, tmp_path: Path, capfd) -> None:
    out = str(tmp_path / "r.safetensors")
    assert main(["reference", out, "--prompt", "Hello", "--activations", "layers.*, layers.0.q_rope"]) == 0
    reference = read_reference(out)
    assert reference.tokens.tolist() == Llama.load(talker).encode("Hello") and reference.dtype == "float64"
    assert "layers.0.q_rope" in reference.activations and "layers.0" in reference.activations
    assert f"{out}: {len(reference.tokens)} tokens, " in capfd.readouterr().err
    assert main(["compare", out]) == 0
    assert "layers.0.q_rope" in capfd.readouterr().out


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_each_dtype_passes_its_own_comparison(dtype: str, tmp_path: Path, capfd) -> None:
    out = str(tmp_path / "r")
    assert main(["reference", out, "--tokens", "1, 2 3", "--dtype", dtype, "--quiet"]) == 0
    assert capfd.readouterr().err == "" and read_reference(out).tokens.tolist() == [1, 2, 3]
    assert read_reference(out).dtype == dtype and main(["compare", out]) == 0


def test_a_compact_reference_is_compared_with_the_model_and_with_a_file(tmp_path: Path, capfd) -> None:
    small, whole = str(tmp_path / "small"), str(tmp_path / "whole")
    assert main(["reference", small, "--tokens", "1 2 3", "--compact"]) == 0
    assert main(["reference", whole, "--tokens", "1 2 3", "--dtype", "bfloat16"]) == 0
    assert main(["compare", small]) == 0
    assert "equal within the limits" in capfd.readouterr().out
    assert main(["compare", small, whole]) == 3
    assert "DIFFERS: relative error" in capfd.readouterr().out
    assert main(["compare", small, "--json"]) == 0
    assert '"ok": true' in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], 'expected one of --prompt TEXT and --tokens "ID ID ..."'),
        (["--prompt", "a", "--tokens", "1"], "expected one of --prompt TEXT and --tokens"),
        (["--tokens", "1 x"], "--tokens is '1 x'; expected token ids"),
        (["--tokens", ""], "--tokens is ''; expected token ids"),
        (["--tokens", "99999999"], "ids from 0 to"),
        (["--prompt", "a", "--from", "vllm"], "--from is 'vllm'; expected llama3 or transformers"),
        (["--prompt", "a", "--dtype", "float16"], "with --from llama3, expected float64, float32, bfloat16"),
        (["--prompt", "a", "--dtype", "float64", "--from", "transformers"], "expected float32, float16, bfloat16"),
        (["--prompt", "a", "--attn-implementation", "flash"], "'flash'; expected sdpa or eager"),
        (["--prompt", "a", "--activations", "layers.99"], "there is no layer 99"),
        (["--prompt", "a", "--activations", "norm", "--compact"], "--compact keeps no activations"),
    ],
)
def test_a_wrong_option_is_one_line(arguments: list[str], message: str, tmp_path: Path, capfd) -> None:
    assert main(["reference", str(tmp_path / "r"), *arguments]) == 2
    error = capfd.readouterr().err
    assert error.startswith("llama3: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_one_file_is_expected(capfd) -> None:
    assert main(["reference", "--prompt", "a"]) == 2
    assert "reference takes the file to write, and found 0 words" in capfd.readouterr().err
