"""docs/server.md: its curl and its Python against a server of the demo, as they stand but for the port."""

import contextlib
import io
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama3 import Llama
from tests.pages import blocks
from tests.server.test_serve import ROOT, Running

PAGE = Path(ROOT) / "docs" / "server.md"
ASK = [{"role": "user", "content": "What is RoPE?"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with Running() as running:
        yield running


def test_the_curl_streams_an_answer(server: Running):
    (command,) = [
        line for block in blocks(PAGE) for line in block.commands if line.startswith("curl") and "/run/" in line
    ]
    command = command.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert re.match(r'data: {"response":".+","p":"\w+"}\n\n', ran.stdout), ran.stdout + ran.stderr
    assert ran.stdout.endswith("data: [DONE]\n\n") and '"usage"' in ran.stdout.split("\n\n")[-3]


def test_the_python_prints_an_answer(server: Running):
    (code,) = [block.text for block in blocks(PAGE) if block.language == "python"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}"), str(PAGE), "exec"), {})
    assert printed.getvalue() == Llama.load().chat(ASK, temperature=0).text + "\n"


@pytest.mark.parametrize("route", re.findall(r"^\| `GET (/[\w/]*)` \|", PAGE.read_text(), re.M))
def test_a_route_of_the_table_is_there(server: Running, route: str):
    assert server.get(route).startswith(b"HTTP/1.1 200")
