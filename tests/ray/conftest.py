"""The demo, loaded once for all tests here."""

import pytest

from llama3 import Llama


@pytest.fixture(scope="session")
def demo() -> Llama:
    return Llama.load(slots=4)
