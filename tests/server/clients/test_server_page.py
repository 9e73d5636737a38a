"""docs/server.md: its curl and its Python against a server of the demo, as they stand but for the port."""

import contextlib
import io
import re
import subprocess
from collections.abc import Iterator

import pytest

from llama3 import Llama
from tests.pages import ROOT, blocks
from tests.server.running import RunningServer

PAGE = ROOT / "docs" / "server.md"
ASK = [{"role": "user", "content": "What is RoPE?"}]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer() as running:
        yield running


def test_the_curl_streams_an_answer(server: RunningServer):
    (command,) = [
        line for block in blocks(PAGE) for line in block.commands if line.startswith("curl") and "/run/" in line
    ]
    command = command.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert re.match(r'data: {"response":".+","p":"\w+"}\n\n', ran.stdout), ran.stdout + ran.stderr
    assert ran.stdout.endswith("data: [DONE]\n\n") and '"usage"' in ran.stdout.split("\n\n")[-3]


def test_the_python_prints_an_answer(server: RunningServer):
    (code,) = [block.text for block in blocks(PAGE) if block.language == "python"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}"), str(PAGE), "exec"), {})
    assert printed.getvalue() == Llama.load().chat(ASK, temperature=0).text + "\n"


@pytest.mark.parametrize("route", re.findall(r"^\| `GET (/[\w/]*)` \|", PAGE.read_text(encoding="utf-8"), re.M))
def test_a_route_of_the_table_is_there(server: RunningServer, route: str):
    assert server.get(route).startswith(b"HTTP/1.1 200")
