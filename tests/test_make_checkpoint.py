"""The benchmarks' random checkpoint has the published 8B's files, is written in little memory, and whole or not."""

import shutil
import subprocess
import sys

import make_checkpoint
import numpy as np
import pytest
from make_checkpoint import LLAMA_3_8B, SHARD, divide, main, nbytes, write_checkpoint

from llama3 import Llama
from llama3.checkpoint.folder import load_folder
from llama3.errors import CheckpointError
from tests.published import LLAMA_3_8B as PUBLISHED
from tests.tiny import tiny_config

# 268 MB of data, and the memory that writing them takes. A process that has been forked begins with its parent's peak.
MEASURE = """
import re, sys
from pathlib import Path
from make_checkpoint import ModelConfig, write_checkpoint
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
write_checkpoint(Path(sys.argv[1]), ModelConfig(2048, 1, 16, 16, 128, 4096, 25_000))
print(peak() - before)
"""


def test_the_shards_are_those_of_the_published_8b():
    shards = divide(LLAMA_3_8B, SHARD)
    assert {name: list(shape) for shard in shards for name, shape in shard.items()} == PUBLISHED.shapes()
    published = [4_976_698_672, 4_999_802_720, 4_915_916_176, 1_168_138_808]  # bytes, with headers of 1 to 13 kB
    assert all(0 < size - sum(map(nbytes, shard.values())) < 13_000 for size, shard in zip(published, shards))


def test_it_loads_and_answers_token_ids_with_finite_logits(tmp_path):
    config = tiny_config(dim=256, hidden_dim=512)
    write_checkpoint(tmp_path / "model", config, shard_limit=300_000)
    llama = Llama.load(tmp_path / "model", device="cpu")
    assert len(llama.checkpoint.files) > 1 and llama.config == config and llama.tokenizer is None
    assert np.isfinite(llama.logits([1, 2, 3])).all() and llama.logits([1, 2, 3]).std() > 0.1
    assert len(llama.generate([1, 2, 3], max_tokens=4).tokens) == 4


def test_equal_seeds_give_equal_files(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_checkpoint(tmp_path / name, tiny_config(), seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_a_smaller_model_has_the_first_layers_of_the_larger_one(tmp_path):
    write_checkpoint(tmp_path / "one", tiny_config(n_layers=1))
    write_checkpoint(tmp_path / "two", tiny_config(n_layers=2), shard_limit=20_000)
    one, two = (load_folder(tmp_path / name).weights for name in ("one", "two"))
    assert np.array_equal(one.layers[0].w2, two.layers[0].w2) and np.array_equal(one.output, two.output)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of the memory stands in Linux's /proc/self/status")
def test_memory_does_not_grow_with_the_files(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "model")],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert ran.returncode == 0, ran.stderr
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert size > 2.5e8 and int(ran.stdout) < 1e8


def test_what_was_interrupted_is_no_checkpoint_and_the_next_run_completes_it(tmp_path, monkeypatch):
    write = make_checkpoint.write_shard

    def interrupted(file, tensors, seed, bar):
        if "00003" in file.name:
            raise KeyboardInterrupt
        write(file, tensors, seed, bar)

    folder = tmp_path / "model"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(make_checkpoint, "write_shard", interrupted)
        write_checkpoint(folder, tiny_config(), shard_limit=20_000)
    assert not folder.exists()
    with pytest.raises(CheckpointError):
        load_folder(tmp_path / "model.partial")
    write_checkpoint(folder, tiny_config(), shard_limit=40_000)  # fewer shards: none of the old ones is left
    assert set(folder.glob("*.safetensors")) == set(load_folder(folder).files)
    assert list(tmp_path.iterdir()) == [folder]


def test_it_refuses_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    assert main([str(tmp_path / "full")]) == 1
    assert capsys.readouterr().err == f"{tmp_path}/full exists and is not empty: name another folder, or delete it\n"
    usage = shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert main([str(tmp_path / "new")]) == 1
    says = f"{tmp_path}/new: the files take 16.06 GB, and 1.00 GB of the disk are free\n"
    assert capsys.readouterr().err == says and not (tmp_path / "new").exists()
