"""A reference file returns what was saved, and any fault in one is an error that names it.

The oracle for the format is the safetensors library, which must read our files and write files that we read.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from llama3.activation_names import activation_names, activation_shape
from llama3.config import RopeScaling
from llama3.errors import CheckpointError
from llama3.parity import Reference, read_reference, save_reference
from tests.tiny import tiny_config

CONFIG = tiny_config(n_layers=1, dim=8, vocab_size=7, rope_scaling=RopeScaling(factor=32.0))


def reference(**changes: Any) -> Reference:
    random = np.random.RandomState(0)
    fields = {
        "tokens": np.array([3, 1, 6, 0]),
        "logits": random.standard_normal((4, 7)).astype(np.float32),
        "positions": np.arange(4),
        "config": CONFIG,
        "dtype": "bfloat16",
        "producer": "a producer",
        "model": "a modèl",
        "activations": {
            name: random.standard_normal(activation_shape(name, CONFIG, 4)).astype(np.float32)
            for name in reversed(activation_names(CONFIG)[:-1])
        },
        "weights": {"norm": "0123"},
    }
    return Reference(**(fields | changes))


def at_positions(r: Reference, *positions: int) -> Reference:
    at = list(positions)
    return replace(
        r,
        logits=r.logits[at],
        positions=np.array(at),
        activations={**r.activations, "norm": r.activations["norm"][at]},
    )


@pytest.mark.parametrize("r", [reference(), at_positions(reference(), 1, 3), reference(activations={}, weights={})])
def test_what_was_saved_is_what_is_read(r: Reference, tmp_path: Path) -> None:
    save_reference(tmp_path / "r.safetensors", r)
    found = read_reference(tmp_path / "r.safetensors")
    for name in ("tokens", "logits", "positions"):
        array = getattr(found, name)
        assert array.dtype == getattr(r, name).dtype and np.array_equal(array, getattr(r, name))
    for name in ("config", "dtype", "producer", "model", "weights", "version"):
        assert getattr(found, name) == getattr(r, name)
    assert list(found.activations) == list(r.activations)
    assert all(np.array_equal(found.activations[name], r.activations[name]) for name in r.activations)


def test_activations_come_in_the_order_of_computation() -> None:
    assert list(reference().activations) == activation_names(CONFIG)[:-1]


def test_the_version_is_the_lowest_that_holds_the_reference() -> None:
    blocks = ["tok_embeddings", "layers.0.attention", "layers.0.feed_forward", "layers.0", "norm"]
    old = {name: reference().activations[name] for name in blocks}
    assert reference(activations=old, weights={}).version == reference(activations={}, weights={}).version == "1"
    assert reference(activations=old).version == "2"
    for name in set(activation_names(CONFIG)[:-1]) - set(blocks):
        assert reference(activations={name: reference().activations[name]}, weights={}).version == "2", name


def test_the_safetensors_library_reads_the_file(tmp_path: Path) -> None:
    file, r = tmp_path / "r.safetensors", at_positions(reference(), 1, 3)
    save_reference(file, r)
    tensors = load_file(file)
    assert set(tensors) == {"tokens", "positions", "logits", *(f"activations.{name}" for name in r.activations)}
    assert np.array_equal(tensors["logits"], r.logits) and np.array_equal(tensors["positions"], [1, 3])
    with safe_open(file, "np") as opened:
        metadata = opened.metadata()
    assert json.loads(metadata.pop("config")) == asdict(CONFIG)
    assert json.loads(metadata.pop("weights")) == {"norm": "0123"}
    assert metadata == {
        "format": "llama3-reference",
        "version": "2",
        "dtype": "bfloat16",
        "producer": "a producer",
        "model": "a modèl",
    }


def test_the_same_reference_gives_the_same_bytes(tmp_path: Path) -> None:
    save_reference(tmp_path / "a", reference())
    save_reference(tmp_path / "b", reference())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_data_begins_at_a_multiple_of_8_bytes(tmp_path: Path) -> None:
    for length in range(8):
        save_reference(tmp_path / "r", reference(model="m" * length))
        assert int.from_bytes((tmp_path / "r").read_bytes()[:8], "little") % 8 == 0
        assert read_reference(tmp_path / "r").logits.flags.aligned


def test_a_file_written_by_the_safetensors_library_is_read(tmp_path: Path) -> None:
    file = tmp_path / "r.safetensors"
    tensors, metadata = parts()
    save_file(tensors, file, metadata)
    assert np.array_equal(read_reference(file).logits, reference().logits)


def parts() -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a valid file, for tests that damage it."""
    r = reference()
    tensors = {"tokens": r.tokens, "logits": r.logits, "activations.norm": r.activations["norm"]}
    return tensors, {
        "format": "llama3-reference",
        "version": "1",
        "producer": "p",
        "dtype": "float32",
        "model": "m",
        "config": json.dumps(asdict(CONFIG)),
    }


def config(**changes: Any) -> dict[str, str]:
    return {"config": json.dumps(asdict(CONFIG) | changes)}


def without(name: str) -> dict[str, str]:
    return {"config": json.dumps({n: v for n, v in asdict(CONFIG).items() if n != name})}


NO: Any = None  # marks a field that is left out


@pytest.mark.parametrize(
    ("tensors", "metadata", "expected"),
    [
        ({}, {"format": "pt"}, "not a reference file: the metadata's format is 'pt'; expected 'llama3-reference'"),
        ({}, {"format": NO}, "not a reference file: the metadata's format is None"),
        ({}, {"version": "3"}, "version is '3'; this program reads the versions 1, 2"),
        ({}, {"weights": "["}, "weights in the metadata is not a JSON object"),
        ({}, {"weights": '{"norm": 3}'}, "weights in the metadata must be a JSON object of hashes, all of them text"),
        ({}, {"version": NO}, "version is None"),
        ({}, {"producer": NO}, "producer is missing in the metadata"),
        ({}, {"model": NO}, "model is missing in the metadata"),
        ({}, {"config": NO}, "config is missing in the metadata"),
        ({}, {"dtype": "int8"}, "dtype is 'int8'; expected float64, float32, float16, bfloat16"),
        ({}, {"config": "{"}, "config in the metadata is not a JSON object"),
        ({}, {"config": "[]"}, "found list, expected an object"),
        ({}, config(dim="8"), "dim is '8'; expected a positive integer"),
        ({}, config(hidden_size=8), "config.hidden_size is unknown; expected dim, n_layers"),
        ({}, without("norm_eps"), "config.norm_eps is missing"),
        ({}, config(rope_scaling=8), "config.rope_scaling is 8; expected an object or null"),
        ({}, config(rope_scaling={"factor": 8}), "config.rope_scaling.low_freq_factor is missing"),
        ({}, config(rope_scaling=asdict(RopeScaling()) | {"factor": "8"}), "rope scaling: factor is '8'"),
        ({"tokens": NO}, {}, "the tensor tokens is missing"),
        ({"logits": NO}, {}, "the tensor logits is missing"),
        ({"tokens": np.array([3, 1, 6, 0], np.int32)}, {}, "tokens is stored as I32; expected I64"),
        ({"tokens": np.array([[3, 1, 6, 0]])}, {}, "expected a row for each token"),
        ({"tokens": np.array([3, 1, 7, 0])}, {}, "tokens holds ids outside 0 to 6"),
        ({"tokens": np.array([3, -1, 6, 0])}, {}, "tokens holds ids outside 0 to 6"),
        ({"logits": np.zeros((4, 7), np.float16)}, {}, "logits is stored as F16; expected F32"),
        (
            {"logits": np.zeros((4, 6), np.float32)},
            {},
            "logits is float32 of shape (4, 6); expected float32 of shape (n, 7)",
        ),
        ({"logits": np.zeros((3, 7), np.float32)}, {}, "expected a row for each token, or the tensor positions"),
        (
            {"tokens": np.zeros(0, np.int64), "logits": np.zeros((0, 7), np.float32)},
            {},
            "tokens is int64 of shape (0,)",
        ),
        ({"positions": np.array([0, 1, 2])}, {}, "positions is int64 of shape (3,); expected int64 of shape (4,)"),
        ({"positions": np.array([0, 1, 1, 2])}, {}, "positions must ascend from 0 or more to 3 or less"),
        ({"positions": np.array([-1, 1, 2, 3])}, {}, "positions must ascend"),
        ({"positions": np.array([0, 1, 2, 4])}, {}, "positions must ascend"),
        (
            {"activations.layers.1": np.zeros((4, 8), np.float32)},
            {},
            "activations.layers.1 is unknown: there is no layer 1; the model has layers 0 to 0",
        ),
        ({"activations.norm": np.zeros((4, 9), np.float32)}, {}, "activations.norm is float32 of shape (4, 9)"),
        (
            {"activations.layers.0.q": np.zeros((4, 64), np.float32)},
            {},
            "activations.layers.0.q is float32 of shape (4, 64); expected float32 of shape (4, 4, 16)",
        ),
        (
            {"activations.layers.0.heads.4.scores": np.zeros((4, 4), np.float32)},
            {},
            "heads.4.scores is unknown: there is no head 4",
        ),
        (
            {"activations.logits": np.zeros((4, 7), np.float32)},
            {},
            "activations.logits is unknown; expected tok_embeddings",
        ),
        ({"hidden": np.zeros((4, 8), np.float32)}, {}, "the tensor hidden is unknown; expected tokens, logits"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value) or "good",
)
def test_one_fault_is_one_line_that_names_it(
    tensors: dict[str, Any], metadata: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    good, texts = parts()
    file = tmp_path / "r.safetensors"
    present = {name: array for name, array in (good | tensors).items() if array is not NO}
    save_file(present, file, {name: text for name, text in (texts | metadata).items() if text is not NO})
    with pytest.raises(CheckpointError) as caught:
        read_reference(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ") and expected in message and "\n" not in message


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 100, (100).to_bytes(8, "little") + b"{}"])
def test_what_is_no_safetensors_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "r").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as a safetensors file"):
        read_reference(tmp_path / "r")


def test_a_truncated_file_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    save_reference(tmp_path / "whole", reference())
    content = (tmp_path / "whole").read_bytes()
    for length in range(0, len(content), 37):
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="cut: cannot be read"):
            read_reference(tmp_path / "cut")
    with pytest.raises(CheckpointError, match="gone: there is no such file; expected one that"):
        read_reference(tmp_path / "gone")


def test_a_mapped_file_cannot_be_written_to(tmp_path: Path) -> None:
    save_reference(tmp_path / "r", reference())
    with pytest.raises(ValueError, match="read-only"):
        read_reference(tmp_path / "r").logits[0, 0] = 1


def test_the_documented_way_to_write_one_without_this_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documentation = (Path(__file__).parents[2] / "docs" / "parity.md").read_text(encoding="utf-8")
    (code,) = (block for block in documentation.split("```python\n") if "save_file(" in block)
    monkeypatch.chdir(tmp_path)
    exec(code.split("```")[0], {"tokens": [128000, 9906], "logits": np.ones((2, 128256))})
    assert read_reference("mine.safetensors").tokens.tolist() == [128000, 9906]
