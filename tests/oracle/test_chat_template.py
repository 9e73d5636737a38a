"""Llama 3's chat templates are told from those of other models: the package trl holds the texts of many."""

from importlib.metadata import distribution
from pathlib import Path

import pytest

from llama3.chat import other_chat_format

FOLDER = Path(str(distribution("trl").locate_file("trl/chat_templates")))
TEMPLATES = sorted(path.name for path in FOLDER.glob("*.jinja"))
LLAMA3 = ["llama3.jinja", "llama3_1.jinja", "llama3_2.jinja", "llama3_training.jinja"]


def test_the_package_holds_llama_3_s_templates_and_many_others() -> None:
    assert set(LLAMA3) < set(TEMPLATES) and len(TEMPLATES) > 40


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_accepted_if_it_is_llama_3_s(name: str) -> None:
    found = other_chat_format((FOLDER / name).read_text())
    assert (found is None) == (name in LLAMA3), found
