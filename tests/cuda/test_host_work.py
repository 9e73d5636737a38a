"""What the host does in a decoding step, counted on a device that does nothing: function calls, uploads, launches.

benchmarks/gpu_host.py measures the time of the same steps.
"""

import sys

import pytest
from gpu_host import CONFIG, KINDS, running_engine
from null_device import NullDevice, empty_model, launches

from llama3.engine import Engine


def calls_of_a_step(n, params):
    """Calls of Python functions, and of functions written in C, by a step that begins ahead."""
    engine, calls = running_engine(Engine, empty_model(NullDevice(), CONFIG), n, params, 50), 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    assert engine._ahead
    sys.setprofile(count)
    try:
        engine.step()
    finally:
        sys.setprofile(None)
    assert engine._ahead
    return calls


@pytest.mark.parametrize(("kind", "of_a_row"), [("greedy", 9), ("full", 9), ("log-probabilities", 20)])
def test_a_step_takes_few_calls_and_few_more_for_each_row(kind, of_a_row):
    params = KINDS[kind]
    alone, many = calls_of_a_step(1, params), calls_of_a_step(64, params)
    assert alone <= 55 and (many - alone) / 63 <= of_a_row, (alone, many)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_ahead_is_one_replay_and_one_copy_of_its_results(kind, monkeypatch):
    engine, work = running_engine(Engine, empty_model(NullDevice(), CONFIG), 3, KINDS[kind], 50), []
    for name in ("alloc", "upload", "download", "copy", "sync", "replay", "_launch", "_gemm", "host_copy"):
        monkeypatch.setattr(NullDevice, name, lambda *_, name=name: work.append(name))
    for _ in range(5):
        assert len(engine.step()) == 3
    assert work == ["replay"] * 5


def test_a_greedy_step_of_one_row_is_five_launches_a_layer_and_four_more():
    """The four: the embedding, the head, and two of the sampler. Any other draw takes thirteen."""
    assert launches(CONFIG, 1, KINDS["greedy"]) == 5 * CONFIG.n_layers + 4
    for rows in (1, 2, 64):
        greedy, full = (launches(CONFIG, rows, KINDS[kind]) for kind in ("greedy", "full"))
        assert full - greedy == 13 - 2
