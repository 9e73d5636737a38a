"""Where tests find what they need, and which are collected."""

import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("llama3", settings(), deadline=None)  # machines that run tests are shared and noisy
settings.load_profile("llama3")

collect_ignore = [] if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers") else ["oracle"]


@pytest.fixture(scope="session")
def stories260k() -> Path:
    """Real trained weights (karpathy/tinyllamas) with reference ids and logits; not part of this repository."""
    beside = Path(__file__).parents[2].glob("*/models/stories260K")  # in any folder that stands beside this checkout
    folder = Path(os.environ.get("LLAMA3_STORIES260K") or next(beside, "stories260K"))
    if not folder.is_dir():
        pytest.skip("the stories260K weights are not here; LLAMA3_STORIES260K names their folder")
    return folder
