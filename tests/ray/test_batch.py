"""`llama3 batch --ray` on a real cluster of this machine: the answers of one process, whatever happens to replicas."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llama3.cli import main
from tests.batch_answers import without_ids
from tests.cli.running import PATIENCE, PROGRAM
from tests.ray.deadly import DEADLY
from tests.ray.loopback import Loopback

pytestmark = pytest.mark.slow


class Programs:
    """Starts programs in the cluster's network, with its token."""

    def __init__(self, network: Loopback, environment: dict[str, str], address: str):
        self.network, self.environment, self.address = network, environment, address

    def start(self, *argv: str, **settings: Any) -> "subprocess.Popen[str]":
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(self.network.command(*argv), env=self.environment, **(pipes | settings))

    def batch(self, *argv: str) -> "subprocess.Popen[str]":
        return self.start(*PROGRAM, "batch", *argv, "--ray", self.address)

    def python(self, code: str, *argv: str) -> "subprocess.Popen[str]":
        return self.start(sys.executable, "-c", code, *argv)


@pytest.fixture
def programs(
    network: Loopback, ray_environment: dict[str, str], ray_token: dict[str, str], ray_address: str
) -> Programs:
    return Programs(network, ray_environment | ray_token, ray_address)


def finish(process: "subprocess.Popen[str]", code: int = 0) -> tuple[str, str]:
    """Wait for its end -> what it wrote to standard output and standard error."""
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, err
    return out, err


def write(path: Path, lines: list[Any]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def requests(n: int, max_tokens: int = 5) -> list[Any]:
    """Both forms in turn, each with a seed, and some that are wrong."""
    forms: list[Any] = [
        lambda more: {"url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "Hi"}], **more}},
        lambda more: {"prompt": "What is RoPE?", **more},
        lambda more: {"url": "/v1/completions", "body": {"prompt": "A", **more}},
        lambda more: {"prompt": "What is RoPE?", "temperature": 9},
        lambda more: {"url": "/v1/nothing", "body": more},
    ]
    return [{"custom_id": str(k), **forms[k % 5]({"seed": k + 1, "max_tokens": max_tokens})} for k in range(n)]


def in_one_process(source: str, tmp_path: Path) -> list[Any]:
    target = tmp_path / "expected.jsonl"
    assert main(["batch", source, "--to", str(target), "--quiet"]) == 0
    return without_ids(target.read_text())


def test_a_cluster_gives_the_answers_of_one_process_and_goes_on_where_it_was(
    programs: Programs, tmp_path: Path
) -> None:
    source, target = write(tmp_path / "requests.jsonl", requests(40)), tmp_path / "answers.jsonl"
    expected = in_one_process(source, tmp_path)
    half = (tmp_path / "expected.jsonl").read_bytes().splitlines(keepends=True)[:11]
    target.write_bytes(b"".join(half)[:-5])  # ten answers, and one that was torn
    out, err = finish(programs.batch(source, "--to", str(target), "--replicas", "2", "--slots", "2"))
    assert without_ids(target.read_text()) == expected
    said = rf"{re.escape(str(target))} has 10 of 40 answers; going on\n30 answers, 12 of them errors; [\d,]+ tokens, .*"
    assert out == "" and re.fullmatch(said + r"; demo on cpu, 2 replicas\n", err)


def test_a_replica_that_is_killed_changes_no_answer(programs: Programs, tmp_path: Path) -> None:
    lines = [line for line in requests(160, 12) if line["custom_id"][-1] in "01256"]
    source, target = write(tmp_path / "requests.jsonl", lines), tmp_path / "answers.jsonl"
    process = programs.batch(source, "--to", str(target), "--replicas", "2", "--slots", "2")
    killed: list[int] = []
    for wanted in (5, 30):  # the second time, it may be the successor
        while process.poll() is None and (not target.exists() or target.read_bytes().count(b"\n") < wanted):
            time.sleep(0.01)
        victim = next(pid for pid in programs.network.processes("ray::BatchReplica") if pid not in killed)
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)
    assert process.poll() is None
    out, err = finish(process)
    assert out == "" and err.count("\n") == 1  # Ray says nothing of it
    assert without_ids(target.read_text()) == in_one_process(source, tmp_path)


def test_a_request_that_kills_its_replica_becomes_an_error_line(programs: Programs, tmp_path: Path) -> None:
    lines = [{"custom_id": str(k), "prompt": "a", "seed": 1, "max_tokens": 4} for k in range(12)]
    lines[5]["prompt"] = DEADLY
    code = """if True:
        import sys
        from contextlib import closing
        from llama3.batch import in_order
        from llama3.ray.cluster import cluster
        from llama3.ray.dispatch import Replicas
        from llama3.ray.placement import place
        from tests.ray.deadly import load
        with cluster(sys.argv[1]), closing(Replicas(load, place("cpu", 2), 2)) as copies:
            for line in in_order(sys.argv[2].encode().splitlines(), copies.answer_line, copies.slots, copies.close):
                print(line.text.decode())
    """
    out, err = finish(programs.python(code, programs.address, "\n".join(json.dumps(line) for line in lines)))
    answers = [json.loads(line) for line in out.splitlines()]
    assert err == ""  # Ray says nothing of it
    assert [answer["custom_id"] for answer in answers] == [line["custom_id"] for line in lines]
    assert [answer["success"] for answer in answers] == [k != 5 for k in range(12)]
    assert "was lost, 3 times in a row" in answers[5]["errors"][0]["message"]


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["--model", "/no/such/folder"], 1, r"/no/such/folder: no such folder; .* \(on [\d.]+\)"),
        (["--device", "cuda"], 2, "device cuda: no machine of the Ray cluster has a GPU; expected the device cpu"),
    ],
)
def test_what_a_replica_lacks_is_one_line(
    argv: list[str], code: int, says: str, programs: Programs, tmp_path: Path
) -> None:
    source = write(tmp_path / "requests.jsonl", requests(3))
    out, err = finish(programs.batch(source, "--to", str(tmp_path / "answers.jsonl"), *argv), code)
    assert out == "" and re.fullmatch(f"llama3: {says}\n", err)


def test_ctrl_c_says_how_to_go_on(programs: Programs, tmp_path: Path) -> None:
    source, target = write(tmp_path / "requests.jsonl", requests(500, 200)), tmp_path / "answers.jsonl"
    process = programs.batch(source, "--to", str(target), "--replicas", "2")
    while not target.exists() or target.read_bytes().count(b"\n") < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = finish(process, 130)
    assert re.fullmatch(r"stopped; .* has \d+ answers: run the same command again to go on\n", err)
    assert 3 <= target.read_bytes().count(b"\n") < 500 and target.read_bytes().endswith(b"\n")
    assert not programs.network.processes("ray::BatchReplica")


def test_python_gives_objects(programs: Programs) -> None:
    code = """if True:
        import json, sys
        import llama3.ray
        requests = ({"custom_id": str(k), "prompt": "a", "max_tokens": 3} for k in range(9))
        for answer in llama3.ray.batch(requests, replicas=2, address=sys.argv[1]):
            print(json.dumps(answer))
    """
    out, err = finish(programs.python(code, programs.address))
    answers = [json.loads(line) for line in out.splitlines()]
    assert err == "" and [answer["custom_id"] for answer in answers] == [str(k) for k in range(9)]
    assert all(answer["result"]["usage"]["completion_tokens"] == 3 for answer in answers)
