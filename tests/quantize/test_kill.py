"""A run that is killed at any moment is continued by the same command, with the same bytes. Memory stays small."""

import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llama3.config import ModelConfig
from tests.tiny import hf_config, random_tensors, tiny_config, write_hf

PROGRAM = """
import sys
from llama3.quantize import plan
plan.SHARD = 2_000_000
from llama3.cli import main
sys.exit(main(sys.argv[1:]))
"""
MEASURED = """
import re, sys
from llama3.cli import main
code = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
sys.exit(code)
"""


def start(program: str, *argv: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", program, "quantize", *argv], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal 9")
@pytest.mark.parametrize("bits", ["8", "4"])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(tmp_path: Path, bits: str):
    config = tiny_config(dim=512, head_dim=128, hidden_dim=1536, n_layers=6, vocab_size=2000)
    model = write_hf(tmp_path / "model", config, random_tensors(config, dtype="bf16"))
    options = (str(model), "--bits", bits, "--to")
    begin = time.monotonic()
    process = start(PROGRAM, *options, str(tmp_path / "whole"))
    while process.poll() is None and not (tmp_path / "whole.partial").exists():
        time.sleep(0.001)
    startup = time.monotonic() - begin
    assert process.wait() == 0
    work, draws, kills = time.monotonic() - begin - startup, random.Random(0), 0
    while not (tmp_path / "new").exists():
        process = start(PROGRAM, *options, str(tmp_path / "new"))
        time.sleep(startup + work * draws.uniform(-0.1, 0.5) if kills < 12 else 2 * (startup + work) + 10)
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills >= 3
    start(PROGRAM, *options, str(tmp_path / "new")).wait()  # removes the note, if it was killed just before that
    whole, new = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("whole", "new"))
    assert len(whole) > 4 and whole == new and not (tmp_path / "new.partial").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from Linux's /proc")
def test_memory_does_not_grow_with_the_model(tmp_path: Path):
    config = ModelConfig(2048, 6, 16, 8, 128, 8192, 64_000)
    model = write_sparse(tmp_path / "model", config)
    size = (model / "model.safetensors").stat().st_size
    process = start(MEASURED, str(model), "--to", str(tmp_path / "new"), "--quiet")
    out, _ = process.communicate()
    assert process.returncode == 0
    peak = int(re.findall(r"^\d+$", out, re.MULTILINE)[-1]) * 1024
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
