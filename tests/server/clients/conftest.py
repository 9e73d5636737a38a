"""A server with the demo, and the packages `openai` and `cloudflare` configured to call it."""

from collections.abc import Iterator

import cloudflare
import openai
import pytest

from tests.server.running import ROOT, RunningServer

TOKEN = "secret"


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    with RunningServer("--token", TOKEN, "--lora", f"rhyme={ROOT}/weights/rhyme") as running:
        yield running


@pytest.fixture(scope="session")
def openai_client(server: RunningServer) -> openai.OpenAI:
    url = f"http://127.0.0.1:{server.port}/client/v4/accounts/me/ai/v1"
    return openai.OpenAI(api_key=TOKEN, base_url=url, max_retries=0)


@pytest.fixture(scope="session")
def cloudflare_client(server: RunningServer) -> cloudflare.Cloudflare:
    url = f"http://127.0.0.1:{server.port}/client/v4"
    return cloudflare.Cloudflare(api_token=TOKEN, base_url=url, max_retries=0)
