"""The demo, asked "What is RoPE?", looked into once for all tests of this folder."""

import pytest

from llama3 import Llama
from llama3.inspect.run import Inspection, inspect

ASK = [{"role": "user", "content": "What is RoPE?"}]


@pytest.fixture(scope="session")
def demo() -> Llama:
    return Llama.load()


@pytest.fixture(scope="session")
def seen(demo: Llama) -> Inspection:
    return inspect(demo, ASK, [(0, 1)], temperature=0, max_tokens=40)
