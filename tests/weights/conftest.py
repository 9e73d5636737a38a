"""The recipe's modules lie in weights/training, outside the package; those used here need no torch."""

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
