"""The demo, loaded once for all tests of the server that run in this process."""

import pytest

from llama3 import Llama


@pytest.fixture(scope="session")
def demo() -> Llama:
    return Llama.load(slots=4)
