"""A server with the demo, packages configured to call it, Chromium, and what their tests ask and expect."""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import cloudflare
import httpx2
import openai
import pytest
from playwright.sync_api import Browser, sync_playwright

from llama3 import Llama
from llama3.model_names import MODELS
from tests.server.node import PACKAGES, copy_project
from tests.server.running import LONG, ROOT, RunningServer

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # importing LiteLLM downloads nothing

TOKEN = "secret"
MODEL = MODELS[0]
QUESTION = [{"role": "user", "content": "What is RoPE?"}]
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]  # makes the demo call the tool
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather of a city", "parameters": CITY},
}
RESULT = "12 degrees, sunny"
SCHEMA = {
    "title": "answer",
    "type": "object",
    "properties": {"about": {"enum": ["RoPE", "the sampler"]}, "known": {"type": "boolean"}},
    "required": ["about", "known"],
    "additionalProperties": False,
}
TOO_HOT = "'/temperature' must be <= 5"  # what is wrong with temperature 9
TOO_LONG = "exceeded this model context window limit (2048)"  # and with max_tokens 100,000


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    with RunningServer("--token", TOKEN, "--lora", f"rhyme={ROOT}/weights/rhyme") as running:
        yield running


@pytest.fixture(scope="session")
def address(server: RunningServer) -> str:
    return f"http://127.0.0.1:{server.port}"


@pytest.fixture(scope="session")
def openai_client(address: str) -> openai.OpenAI:
    return openai.OpenAI(api_key=TOKEN, base_url=f"{address}/client/v4/accounts/me/ai/v1", max_retries=0)


@pytest.fixture(scope="session")
def cloudflare_client(address: str) -> cloudflare.Cloudflare:
    return cloudflare.Cloudflare(api_token=TOKEN, base_url=f"{address}/client/v4", max_retries=0)


@pytest.fixture(scope="session")
def answer() -> str:
    """The demo's whole answer to QUESTION at temperature 0."""
    return Llama.load().chat(QUESTION, temperature=0).text


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without a window. Not for the whole session: Playwright's event loop would be in the way of others."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def prompt_after_a_call(address: str) -> int:
    """The tokens of the prompt behind WEATHER, its call of TOOL and RESULT, in OpenAI's own form."""
    call = {"id": "call", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    history = [
        *WEATHER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call", "content": RESULT},
    ]
    inputs = {"model": MODEL, "messages": history, "tools": [TOOL], "max_tokens": 1}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    found = httpx2.post(f"{address}/v1/chat/completions", json=inputs, headers=headers, trust_env=False)
    return found.json()["usage"]["prompt_tokens"]


@contextlib.contextmanager
def the_rest_is_not_generated(address: str) -> Iterator[None]:
    """The requests for LONG in this block, which their clients leave, end before all of its tokens are generated."""

    def metric(name: str) -> float:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        text = httpx2.get(f"{address}/metrics", headers=headers, trust_env=False).text
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.M)
        return float(found[1]) if found else 0

    before = metric('llama3_tokens_total{kind="generated"}')
    yield
    deadline = time.monotonic() + 60
    while metric("llama3_requests_in_flight"):
        assert time.monotonic() < deadline, "a request whose client has left is still in flight"
        time.sleep(0.05)
    assert metric('llama3_tokens_total{kind="generated"}') - before < LONG["max_tokens"]


def worker_project(address: str, folder: Path, script: str) -> Path:
    """A copy of `docs/worker/wrangler/` whose Worker is a script of `node/`, and which calls this server."""
    copy_project(Path(ROOT) / "docs" / "worker" / "wrangler", folder)
    for file in PACKAGES.parent.glob("*.mjs"):
        shutil.copy(file, folder)
    config = (folder / "wrangler.jsonc").read_text().replace("../worker.js", script)
    (folder / "wrangler.jsonc").write_text(config.replace("127.0.0.1:8000", address.removeprefix("http://")))
    return folder
