"""A server with the demo, and the two clients pointed at it."""

from collections.abc import Iterator

import cloudflare
import openai
import pytest

from tests.server.test_serve import ROOT, Running

TOKEN = "secret"


@pytest.fixture(scope="session")
def served() -> Iterator[Running]:
    with Running("--token", TOKEN, "--lora", f"rhyme={ROOT}/weights/rhyme") as running:
        yield running


@pytest.fixture(scope="session")
def openai_client(served: Running) -> openai.OpenAI:
    url = f"http://127.0.0.1:{served.port}/client/v4/accounts/me/ai/v1"
    return openai.OpenAI(api_key=TOKEN, base_url=url, max_retries=0)


@pytest.fixture(scope="session")
def cloudflare_client(served: Running) -> cloudflare.Cloudflare:
    url = f"http://127.0.0.1:{served.port}/client/v4"
    return cloudflare.Cloudflare(api_token=TOKEN, base_url=url, max_retries=0)
