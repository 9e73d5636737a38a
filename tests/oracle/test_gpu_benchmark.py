"""The GPU benchmark: its floors are right, and all of its code runs on a tiny emulated model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from gpu_floor import LLAMA3_8B, attention_flops, cache_read, predictions, prefill_flops, weights_read

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_floors_are_those_of_llama_3_8b():
    """Meta's own count is 8,030,261,248 parameters, of which the embedding is not read."""
    assert weights_read(LLAMA3_8B) == 2 * (8_030_261_248 - 128_256 * 4096)
    assert cache_read(LLAMA3_8B, 1) == 128 * 1024
    assert attention_flops(LLAMA3_8B, 8192) * 32 == pytest.approx(17.59e12, rel=1e-3)
    assert prefill_flops(LLAMA3_8B, 8192) == pytest.approx(131.94e12, rel=1e-3)
    assert all(ms > 3.4 for _, ms, _ in predictions(LLAMA3_8B, 4.3, 790, 1.3))


@pytest.mark.parametrize("parts", [["first", "start"], pytest.param(["prompt", "products"], marks=pytest.mark.slow)])
def test_every_row_is_measured_on_a_tiny_model(tmp_path, parts):
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--tiny", "--out", str(out), "--parts", *parts]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=BENCHMARKS.parent)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(out.read_text())
    assert report["rows"] and not [row for row in report["rows"] if "error" in row]
    assert all(row["ms"] > 0 for row in report["rows"]) and report["limits"]["read_only_TB_s"] > 0


def test_a_target_holds_or_not_or_is_not_measured():
    from gpu import verdicts

    assert all(line.endswith("not measured") for line in verdicts({"rows": []}))
    rows = [
        {"name": "decode, batch 1, context 128: ours", "ms": 4.0, "share_of_read_bandwidth": 0.89},
        {"name": "decode, batch 1, context 128: fast_compile", "ms": 5.0},
        {"name": "decode, batch 1, context 128: ours, every parameter set", "ms": 4.04},
    ]
    lines = [line for line in verdicts({"rows": rows}) if not line.endswith("not measured")]
    assert [line.split(": ")[-1] for line in lines] == ["does not hold", "holds", "holds"]
