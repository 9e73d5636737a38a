"""Ranks as processes: `Llama` on them, how they start, and how they end."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llama3 import Llama
from llama3.errors import DeviceError, RequestError
from llama3.tensor_parallel.channel import RankError
from tests.cli.running import run
from tests.tiny import (
    TINY_VOCAB,
    random_adapter,
    random_tensors,
    tiny_config,
    write_adapter,
    write_hf,
    write_tokenizer,
)

ROOT = Path(__file__).parents[2]
CONFIG = tiny_config(dim=64, n_heads=8, n_kv_heads=4, hidden_dim=192)
GREEDY = {"temperature": 0, "max_tokens": 12}
PROMPTS = [list(range(5, 45)), [*range(5, 40), 3], [9, 8, 7]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_hf(tmp_path_factory.mktemp("ranks"), CONFIG, random_tensors(CONFIG, dtype="bf16"))


@pytest.fixture(scope="module")
def lora(tmp_path_factory) -> dict[str, Path]:
    return {"all": write_adapter(tmp_path_factory.mktemp("adapter"), random_adapter(CONFIG, 1), lora_alpha=1)}


@pytest.fixture(scope="module")
def two(folder, lora) -> Llama:
    return Llama.load(folder, device="cpu:0-1", slots=2, lora=lora)


def gone(process: "subprocess.Popen[bytes]") -> bool:
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        return False
    return True


def test_a_llama_on_two_processes_gives_the_numbers_and_tokens_of_one(two, folder, lora):
    """Prompts that share a beginning reuse each other's keys in every rank; a second adapter shares the batch."""
    one = Llama.load(folder, slots=2, lora=lora)
    a, b = one.logits(PROMPTS[0]), two.logits(PROMPTS[0])
    assert np.linalg.norm(a - b) <= 1e-6 * np.linalg.norm(a)
    for prompt in PROMPTS:
        assert two.generate(prompt, **GREEDY).tokens == one.generate(prompt, **GREEDY).tokens
    answers = []
    for llama in (one, two):
        streams = [llama.stream(PROMPTS[0], lora=name, **GREEDY) for name in ("all", None)]
        answers.append([stream.completion().tokens for stream in streams])
    assert answers[0] == answers[1] and " on cpu:0-1, " in repr(two)


def test_functions_that_need_all_heads_in_one_process_say_so(two, tmp_path):
    with pytest.raises(RequestError, match=r"^a trace needs all heads in one process, and this model is on cpu:0-1$"):
        two.trace([1, 2], "layers.0")
    with pytest.raises(RequestError, match=r"^a prefix cannot be saved from several ranks"):
        two.save_prefix(tmp_path / "x", [1, 2])
    assert len(two.generate([1, 2], **GREEDY).tokens) == 12


def test_a_bias_on_logits_works_on_ranks_too(two):
    assert two.generate([1, 2], logit_bias={7: 1e9}, **GREEDY).tokens == [7] * 12


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to threads on this system")
def test_an_interrupted_step_leaves_the_ranks_in_step(two):
    """Ctrl-C at any moment: the next answer is right."""
    expected = two.generate(PROMPTS[0], **GREEDY).tokens
    main = threading.main_thread().ident
    interrupts = 0
    for i in range(6):
        timer = threading.Timer(0.005 * i, signal.pthread_kill, (main, signal.SIGINT))
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            timer.start()
            two.generate(PROMPTS[0], **GREEDY)
            timer.join()
        except KeyboardInterrupt:
            interrupts += 1
        finally:
            timer.join()
            signal.signal(signal.SIGINT, before)
        assert two.generate(PROMPTS[0], **GREEDY).tokens == expected
    assert interrupts


@pytest.mark.parametrize("moment", [pytest.param("idle", marks=pytest.mark.slow), "in a step"])
def test_a_rank_that_is_killed_is_an_error_within_seconds_and_the_next_start_works(folder, moment):
    llama = Llama.load(folder, device="cpu:0-1")
    (process,) = llama.model.ranks.processes
    start = time.monotonic()
    if moment == "idle":
        process.kill()
    stream = llama.stream([1, 2, 3], max_tokens=250, temperature=0)
    with pytest.raises(RankError, match=r"^device cpu:0-1: rank 1 .*SIGKILL; load the model again$"):
        for i, _ in enumerate(stream):
            if i == 3:
                process.kill()
    assert time.monotonic() - start < 5 and stream.finish_reason == "error"
    with pytest.raises(RankError, match="load the model again"):
        llama.logits([1, 2])
    assert len(Llama.load(folder, device="cpu:0-1").generate([1, 2], **GREEDY).tokens) == 12


@pytest.mark.slow
def test_ranks_end_with_the_model(folder):
    llama = Llama.load(folder, device="cpu:0-3")
    processes = llama.model.ranks.processes
    assert len(processes) == 3 and all(process.poll() is None for process in processes)
    del llama
    assert all(gone(process) for process in processes)


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["8", "4"])
def test_the_command_line_answers_on_two_processes_from_what_llama3_quantize_wrote(tmp_path, bits):
    config = replace(CONFIG, vocab_size=TINY_VOCAB, hidden_dim=256)
    full = write_tokenizer(write_hf(tmp_path / "full", config, random_tensors(config, dtype="bf16")))
    assert run("quantize", str(full), "--to", str(tmp_path / "new"), "--bits", bits).returncode == 0
    words = ["--model", str(tmp_path / "new"), "--temperature", "0", "--max-tokens", "20", "--quiet", "the thing"]
    one, two = (run("--device", device, *words) for device in ("cpu", "cpu:0-1"))
    assert one.returncode == two.returncode == 0 and len(one.stdout) > 20, two.stderr
    assert two.stdout == one.stdout


SCRIPT = """
import os, sys
from llama3 import Llama
llama = Llama.load(sys.argv[1], device="cpu:0-1")
print(llama.generate([1, 2, 3], temperature=0, max_tokens=4).tokens, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["a script", "standard input", "a folder with a random.py"])
def test_a_program_needs_no_main_guard(folder, tmp_path, way):
    (tmp_path / "script.py").write_text(SCRIPT)
    if way == "a folder with a random.py":
        (tmp_path / "random.py").write_text("raise SystemExit('this is not the standard library')")
    script = ROOT / "tests" / "none.py" if way == "standard input" else tmp_path / "script.py"
    command = [sys.executable, "-P", "-" if way == "standard input" else str(script), str(folder)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, input=SCRIPT, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    expected = Llama.load(folder).generate([1, 2, 3], temperature=0, max_tokens=4).tokens
    assert ran.stdout == f"{expected}\n", ran.stderr  # once: the script ran in rank 0 only


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="/proc shows processes on Linux only")
def test_ranks_do_not_outlive_rank_0(folder):
    program = SCRIPT + "print(llama.model.ranks.processes[0].pid, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout and first.stdout.readline()
        rank = int(first.stdout.readline())
        assert Path(f"/proc/{rank}").is_dir()
        first.kill()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{rank}/exe").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{rank}/exe").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_cannot_use_the_ranks_and_does_not_end_them(two):
    child = os.fork()
    if not child:
        try:
            two.generate([1, 2], **GREEDY)
        except DeviceError as error:
            os._exit(0 if "was loaded before a fork" in str(error) else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert len(two.generate([1, 2], **GREEDY).tokens) == 12


def test_a_rank_that_cannot_start_says_why(folder, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(RankError, match=r"^device cpu:0-1: rank 1 \(process \d+\) ended with exit code 1"):
        Llama.load(folder, device="cpu:0-1")
    monkeypatch.setattr(sys, "executable", "/no/such/program")
    with pytest.raises(DeviceError, match=r"^device cpu:0-1: no process can be started: .*/no/such/program"):
        Llama.load(folder, device="cpu:0-1")


def test_a_device_name_that_is_no_range_is_refused():
    for device in ("cpu:1-2", "cpu:0-0", "cuda:3-1", "cpu:0-", "cpu:2", "cuda:0-999999", "cpu:0-64"):
        with pytest.raises(RequestError, match=f"^device is '{device}'; expected "):
            Llama.load(device=device)
