"""The new checkpoint: its tensors, its shards, its small files; bad input; runs that are interrupted and continued."""

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from llama3.errors import CheckpointError, RequestError
from llama3.model.quantised import QuantisedMatrix
from llama3.quantize import plan, quantize, shard_file, source
from llama3.quantize.target import only_run
from tests.tiny import TINY_VOCAB, random_tensors, tiny_config, write_hf, write_meta, write_tokenizer

CONFIG = tiny_config(dim=128, head_dim=32, hidden_dim=256)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_hf(tmp_path / "model", CONFIG, random_tensors(CONFIG, dtype="bf16"))


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: array for file in files for name, array in safetensors.numpy.load_file(file).items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def matrix(found: dict[str, np.ndarray], name: str, bits: int) -> QuantisedMatrix:
    packed, scale, shape = (found[f"{name}_{part}"] for part in ("packed", "scale", "shape"))
    n_out, n_in = map(int, shape)
    group = (1, n_in // scale.shape[1])
    return QuantisedMatrix((n_out, n_in), bits, packed.view(np.uint8), group, scale, zero=2 ** (bits - 1))


@pytest.mark.parametrize(("bits", "most"), [(8, 0.012), (4, 0.12)])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_layers_are_rounded_and_all_else_is_copied(tmp_path: Path, bits: int, most: float, dtype: str):
    tensors = random_tensors(CONFIG, dtype=dtype)
    folder = quantize(write_hf(tmp_path / "model", CONFIG, tensors), tmp_path / "new", bits)
    found = tensors_of(folder)
    for name, array in tensors.items():
        if not name.endswith("_proj.weight"):
            assert np.array_equal(found.pop(name).view(np.uint8), array.view(np.uint8)), name
            continue
        rounded, exact = matrix(found, name, bits).rows(0, len(array)), array.astype(np.float32)
        assert np.linalg.norm(rounded - exact) <= most * np.linalg.norm(exact), name
        parts = [found.pop(f"{name}_{part}") for part in ("packed", "scale", "shape")]
        assert [part.dtype for part in parts] == [np.int32, array.dtype, np.int64]
        assert parts[1].shape == (len(array), 1 if bits == 8 else array.shape[1] // 128)
    assert not found


def test_small_files_are_copied_and_the_config_gets_a_field(tmp_path: Path):
    config = tiny_config(dim=128, hidden_dim=256, vocab_size=TINY_VOCAB)
    model = write_tokenizer(write_hf(tmp_path / "model", config, random_tensors(config)))
    (model / "original").mkdir()
    small = ["generation_config.json", "tokenizer_config.json", "chat_template.jinja", "original/tokenizer.model"]
    small += ["LICENSE.txt", "USE_POLICY.md", "NOTICE"]
    for name in small:
        (model / name).write_text(json.dumps({"name": name}))
    (model / "README.md").write_text("a description of the model in bf16")
    folder = quantize(model, tmp_path / "new", 4)
    fields = json.loads((folder / "config.json").read_text())
    assert fields.pop("quantization_config")["quant_method"] == "compressed-tensors"
    assert fields == json.loads((model / "config.json").read_text())
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"config.json", "model.safetensors", "tokenizer.model", *small}
    for name in ("tokenizer.model", *small):
        assert (folder / name).read_bytes() == (model / name).read_bytes()


def test_tied_embeddings_stay_tied(tmp_path: Path):
    config = tiny_config(tied_embeddings=True)
    folder = quantize(write_hf(tmp_path / "model", config, random_tensors(config)), tmp_path / "new")
    assert "lm_head.weight" not in tensors_of(folder)


@pytest.mark.parametrize("bits", [8, 4])
def test_shards_hold_what_one_file_holds(model: Path, tmp_path: Path, bits: int, monkeypatch: pytest.MonkeyPatch):
    one = tensors_of(quantize(model, tmp_path / "one", bits))
    monkeypatch.setattr(plan, "SHARD", 100_000)
    monkeypatch.setattr(source, "BLOCK", 10_000)  # many blocks a matrix
    folder = quantize(model, tmp_path / "many", bits)
    files = sorted(folder.glob("*.safetensors"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(files) >= 3 and files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert all(sum(a.nbytes for a in safetensors.numpy.load_file(file).values()) <= 100_000 for file in files)
    many = tensors_of(folder)
    assert many.keys() == one.keys() == index["weight_map"].keys()
    assert all(np.array_equal(many[name].view(np.uint8), one[name].view(np.uint8)) for name in one)
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in one.values())
    for name, file in index["weight_map"].items():
        with safe_open(folder / file, "np") as opened:
            assert opened.get_slice(name).get_shape() == [*one[name].shape] and opened.metadata() == {"format": "pt"}


def test_every_tensor_is_aligned_to_its_dtype(model: Path, tmp_path: Path):
    data = (quantize(model, tmp_path / "new", 4) / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__")
    for entry in header.values():
        assert (8 + length + entry["data_offsets"][0]) % plan.ITEMSIZE[entry["dtype"]] == 0


def test_progress_ends_with_all_bytes(model: Path, tmp_path: Path):
    calls: list[tuple[int, int]] = []
    quantize(model, tmp_path / "new", 8, lambda *call: calls.append(call))
    size = sum(array.nbytes for array in tensors_of(model).values())
    assert calls == sorted(calls) and calls[-1] == (size, size)


# ---- bad input


def refused(model: Path, to: Path, says: str, bits: Any = 8) -> None:
    before = contents(to) if to.is_dir() else None
    with pytest.raises((CheckpointError, RequestError)) as error:
        quantize(model, to, bits)
    assert says in str(error.value) and "\n" not in str(error.value)
    assert (contents(to) if to.is_dir() else None) == before


@pytest.mark.parametrize("bits", [3, 16, "8", True])
def test_bits_are_8_or_4(model: Path, tmp_path: Path, bits: Any):
    refused(model, tmp_path / "new", "expected 8 or 4", bits)


def test_a_target_that_is_in_use_is_refused(model: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    refused(model, tmp_path / "file", "not an empty folder")
    refused(model, model, "the same folder")
    refused(model, tmp_path / "model" / ".." / "model", "the same folder")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("")
    refused(model, tmp_path / "used", "not an empty folder")
    (tmp_path / "empty").mkdir()
    assert quantize(model, tmp_path / "empty").is_dir()
    refused(model, tmp_path / "empty", "not an empty folder")


def test_sources_that_cannot_be_quantised_are_refused(model: Path, tmp_path: Path):
    refused(tmp_path / "nothing", tmp_path / "new", "no such folder")
    refused(quantize(model, tmp_path / "q"), tmp_path / "new", "quantised already")
    refused(write_meta(tmp_path / "meta", CONFIG, random_tensors(CONFIG)), tmp_path / "new", "Meta's tensor names")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    refused(tmp_path / "broken", tmp_path / "new", "not valid JSON")
    assert not (tmp_path / "new.partial").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float, name: str):
    tensors = random_tensors(CONFIG, dtype="bf16")
    tensors[name][7 if tensors[name].ndim == 1 else (7, 3)] = value
    refused(write_hf(tmp_path / "model", CONFIG, tensors), tmp_path / "new", f"{name!r} holds NaN or infinity in row 7")


# ---- interrupted runs


@pytest.fixture
def many_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "SHARD", 100_000)


def fail_at(monkeypatch: pytest.MonkeyPatch, shard: int, number: int) -> None:
    """The disk is full, or fails, when this shard is almost written."""
    calls = 0

    def fsync(file: int) -> None:
        nonlocal calls
        calls += 1
        if calls > shard:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(shard_file.os, "fsync", fsync)


@pytest.mark.parametrize(
    ("number", "says"), [(errno.ENOSPC, "the disk is full: free some space"), (errno.EIO, "error")]
)
def test_what_is_whole_is_kept_when_the_disk_fails(
    model: Path, tmp_path: Path, many_shards: None, number: int, says: str
):
    whole = contents(quantize(model, tmp_path / "whole", 4))
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, 2, number)
        refused(model, tmp_path / "new", says, 4)
    kept = {path.name: path.stat().st_ino for path in (tmp_path / "new.partial").glob("*.safetensors")}
    assert len(kept) == 2 and not list((tmp_path / "new.partial").glob("*.incomplete"))
    assert contents(quantize(model, tmp_path / "new", 4)) == whole
    assert {name: (tmp_path / "new" / name).stat().st_ino for name in kept} == kept
    assert not (tmp_path / "new.partial").exists()


def test_a_run_that_was_interrupted_before_its_note_was_whole_is_continued(model: Path, tmp_path: Path):
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial" / "quantize.json.incomplete").write_text("{")
    folder = quantize(model, tmp_path / "new")
    assert contents(folder).keys() == {"config.json", "model.safetensors"}


def test_an_interrupted_run_is_not_continued_with_other_bits_or_another_source(
    model: Path, tmp_path: Path, many_shards: None
):
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, 2, errno.EIO)
        refused(model, tmp_path / "new", "error", 4)
    refused(model, tmp_path / "new", "of another source or number of bits", 8)
    os.utime(model / "model.safetensors")
    refused(model, tmp_path / "new", "of another source or number of bits", 4)


def test_two_runs_do_not_write_the_same_folder(model: Path, tmp_path: Path):
    with only_run(tmp_path / "new"):
        refused(model, tmp_path / "new", "another run writes it at the moment: wait for that one, or name another")
    quantize(model, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "new"]


def test_other_files_in_the_way_are_not_overwritten(model: Path, tmp_path: Path):
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial" / "mine").write_text("mine")
    refused(model, tmp_path / "new", "new.partial holds other files: delete it, or name another target")


def test_too_little_space_is_noticed_at_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    refused(model, tmp_path / "new", "but only 0.00 are free")


def test_a_run_that_was_interrupted_after_its_last_step_is_complete(model: Path, tmp_path: Path):
    folder = quantize(model, tmp_path / "new")
    before = contents(folder)
    files = [path.stat() for path in (model / "model.safetensors", model / "config.json")]
    note = {"source": str(model), "bits": 8, "files": [[f.st_size, f.st_mtime_ns] for f in files]}
    (folder / "quantize.json").write_text(json.dumps(note))
    assert quantize(model, tmp_path / "new") == folder
    assert contents(folder) == before
