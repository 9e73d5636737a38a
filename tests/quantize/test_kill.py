"""A run that is killed at any moment is continued by the same command, with the same bytes. Memory stays small."""

import json
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llama3.config import ModelConfig
from tests.tiny import hf_config, random_tensors, tiny_config, write_hf

PROGRAM = """
import os, signal, sys
from llama3.cli import main
from llama3.quantize import plan
plan.SHARD = 2_000_000
last, calls = int(sys.argv[1]), 0
files = tuple(os.path.join("quantize", name) for name in ("write.py", "shard_file.py", "target.py"))
def count(frame, event, arg):  # of what the files that write call and return
    global calls
    if not frame.f_code.co_filename.endswith(files):
        return
    calls += 1
    if calls == last:
        os.kill(os.getpid(), signal.SIGKILL)
sys.setprofile(count)
code = main(sys.argv[2:])
sys.setprofile(None)
print(calls)
sys.exit(code)
"""
MEASURED = """
import re, sys
from llama3.cli import main
code = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
sys.exit(code)
"""


def run(program: str, *argv: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", program, *argv], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal 9")
@pytest.mark.parametrize("bits", ["8", "4"])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(tmp_path: Path, bits: str):
    """The process kills itself at a drawn call, in the first third of the calls of a whole run."""
    config = tiny_config(dim=512, head_dim=128, hidden_dim=1536, n_layers=6, vocab_size=2000)
    model = write_hf(tmp_path / "model", config, random_tensors(config, dtype="bf16"))
    options = ("quantize", str(model), "--bits", bits, "--to")
    whole = run(PROGRAM, "0", *options, str(tmp_path / "whole"))
    assert whole.returncode == 0
    calls, draws, kills = int(whole.stdout.split()[-1]), random.Random(0), 0
    while (killed := run(PROGRAM, str(draws.randrange(1, calls // 3)), *options, str(tmp_path / "new"))).returncode:
        assert killed.returncode == -signal.SIGKILL
        kills += 1
    assert kills >= 3 and not (tmp_path / "new.partial").exists()
    old, new = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("whole", "new"))
    assert len(old) > 4 and old == new


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from Linux's /proc")
def test_memory_does_not_grow_with_the_model(tmp_path: Path):
    config = ModelConfig(2048, 6, 16, 8, 128, 8192, 64_000)
    model = write_sparse(tmp_path / "model", config)
    size = (model / "model.safetensors").stat().st_size
    done = run(MEASURED, "quantize", str(model), "--to", str(tmp_path / "new"), "--quiet")
    assert done.returncode == 0
    peak = int(re.findall(r"^\d+$", done.stdout, re.MULTILINE)[-1]) * 1024
    assert size > 900e6 and peak < 400e6


def write_sparse(folder: Path, config: ModelConfig) -> Path:
    """A checkpoint of zeros, which takes no space on the disk."""
    from llama3.checkpoint.names import HUGGING_FACE, shapes

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(hf_config(config)))
    header, end = {}, 0
    for name, shape in shapes(config, HUGGING_FACE).items():
        begin, end = end, end + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors at odd addresses would be copied
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder
