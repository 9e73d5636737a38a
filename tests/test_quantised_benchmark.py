"""benchmarks/quantised.py, all of it on tiny models: every figure is there, and a second run adds what is missing."""

import importlib.util
import json
from dataclasses import replace

import pytest
import quantised
import random_8b
from make_checkpoint import write_checkpoint

from llama3.quantize import quantize

pytestmark = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")
TINY = {"dim": 128, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "head_dim": 32, "hidden_dim": 256}


@pytest.mark.slow
def test_every_figure_is_measured_once_and_beside_its_bar(tmp_path, monkeypatch, capsys):
    config = replace(random_8b.CONFIG, **TINY)
    for name, value in {"CONTEXT": 64, "TURNS": 1}.items():
        monkeypatch.setattr(quantised, name, value)
    monkeypatch.setattr(random_8b, "CONFIG", config)
    write_checkpoint(tmp_path / "bf16", config)
    folders = [tmp_path / "bf16", *(quantize(tmp_path / "bf16", tmp_path / f"int{bits}", bits) for bits in (8, 4))]
    command = ["--turns", "2", "--out", str(tmp_path / "out.json")]
    assert quantised.main(command) == 0
    assert quantised.main([*command, "--model", *map(str, folders)]) == 0

    report = json.loads((tmp_path / "out.json").read_text())
    assert set(report["measured"]) == set(quantised.jobs())
    assert all(len(turns) == 2 for seconds in report["seconds"].values() for turns in seconds.values())
    shown = capsys.readouterr().out
    assert "not measured" not in shown
    assert [f"8B: >= {bar} x" in shown and f"  >= {bar} x" in shown for bar in quantised.SPEED.values()] == [True] * 4
    assert [f"<= {bar} GB" in shown for bar in quantised.MEMORY.values()] == [True] * 2

    monkeypatch.setattr(quantised, "four_layers", None)  # neither part is measured again
    monkeypatch.setattr(quantised.full_8b, "measure", None)
    assert quantised.main([*command, "--model", *map(str, folders)]) == 0
