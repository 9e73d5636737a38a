"""Makes the modules of weights/training importable. The tests here use only those that do not need torch."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "weights" / "training"))

from corpus import Corpus  # noqa: E402


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    return Corpus()


@pytest.fixture(scope="session")
def demo() -> Path:
    return ROOT / "weights" / "demo"
