"""The benchmark of the whole 8B: all of its code runs on a tiny model, and a run that is cut short goes on."""

import json

import full_8b
import numpy as np
import pytest
from make_checkpoint import ModelConfig, write_checkpoint

TINY = ModelConfig(64, 2, 4, 2, 16, 128, 128_256)


def test_a_run_that_is_cut_short_keeps_its_results_and_goes_on(tmp_path, monkeypatch, capsys):
    write_checkpoint(tmp_path / "model", TINY)
    monkeypatch.setattr(full_8b, "PROMPTS", (20,))
    measure, out, made = full_8b.measure, tmp_path / "full.json", []

    def interrupted(job, args):
        if len(made) == 1:
            made.append("killed")
            raise KeyboardInterrupt
        made.append(job)
        return measure(job, args)

    monkeypatch.setattr(full_8b, "measure", interrupted)
    command = ["--checkpoint", str(tmp_path / "model"), "--out", str(out), "--turns", "1"]
    with pytest.raises(KeyboardInterrupt):
        full_8b.main(command)
    assert list(json.loads(out.read_text())["measured"]) == ["ours 1"]
    assert full_8b.main(command) == 0
    assert made == ["ours,16,8", "killed", "transformers,16,8", "ours,20,1"]

    report = json.loads(out.read_text())
    ours, theirs = report["measured"]["ours 1"], report["measured"]["transformers 1"]
    assert full_8b.nmse(ours["logits"], theirs["logits"]) < full_8b.NMSE
    assert all(result[name] > 0 for result in (ours, theirs) for name in full_8b.FIGURES)
    assert "not measured" not in capsys.readouterr().out

    assert full_8b.main([*command, "--linear", "numpy"]) == 1
    assert capsys.readouterr().err == f"{out}: its linear is default, this run's numpy: name another file\n"


def test_without_room_in_memory_nothing_is_measured_and_the_run_fails(tmp_path, monkeypatch, capsys):
    write_checkpoint(tmp_path / "model", TINY)
    monkeypatch.setattr(full_8b, "available_memory", lambda: 1e9)
    assert full_8b.main(["--checkpoint", str(tmp_path / "model"), "--turns", "1"]) == 1
    shown = capsys.readouterr().out
    assert "ours 1 ... 1.0 GB of memory are available; expected 3.0" in shown and "not measured" in shown
    assert full_8b.main(["--checkpoint", str(tmp_path / "none")]) == 1
    assert "config.json" in capsys.readouterr().err


def test_the_error_is_relative_to_the_reference():
    assert full_8b.nmse([1.0, 2.0], [1.0, 2.0]) == 0
    assert np.isclose(full_8b.nmse([0.0, 0.0], [3.0, 4.0]), 1)
