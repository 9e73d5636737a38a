"""The examples for curl and Python on the model page, run with only the address changed (Workers: test_workerd.py)."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llama3 import Llama
from tests.server.clients.conftest import TOKEN
from tests.server.running import ROOT, RunningServer

SYSTEM = {"role": "system", "content": "You are a friendly assistant"}


@pytest.fixture(scope="module")
def text() -> str:
    page = next(Path(ROOT).parent.glob("*/contract/model-page.txt"), None)
    if page is None:
        pytest.skip("the page's own examples are missing; they belong in contract/ beside this checkout")
    return page.read_text()


def run(command: list[str], code: str, server: RunningServer) -> str:
    code = code.replace("https://api.cloudflare.com", f"http://127.0.0.1:{server.port}")
    environment = {**os.environ, "CLOUDFLARE_AUTH_TOKEN": TOKEN, "CLOUDFLARE_ACCOUNT_ID": "me"}
    ran = subprocess.run([*command, code], capture_output=True, text=True, env=environment, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def assert_answers(reply: dict, prompt: str) -> None:
    assert reply["success"] and reply["result"]["response"]
    messages = [SYSTEM, {"role": "user", "content": prompt}]
    assert reply["result"]["usage"]["prompt_tokens"] == len(Llama.load().encode_chat(messages))


def test_curl(text: str, server: RunningServer):
    (code,) = re.findall(r"curl https://.*?\]\}'", text, re.S)
    code = re.sub(r"\\\s+", " ", code)  # in the saved page the line ends are lost
    assert_answers(json.loads(run(["bash", "-c"], code, server)), "Why is pizza so good")


def test_python(text: str, server: RunningServer):
    (code,) = re.findall(r"import os\s*import requests.*?print\(result\)", text, re.S)
    for start in ("import requests", "AUTH_TOKEN =", "response = requests", "result =", "print("):
        code = code.replace(start, "\n" + start, 1)
    assert_answers(ast.literal_eval(run([sys.executable, "-c"], code, server)), "Tell me all about PEP-8")
