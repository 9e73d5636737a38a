"""What the README says of the tree is so."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
READING_ORDER = re.findall(r"^\| \d+ \| \[`(.+?)`\]\((.+?)\) \| (\d+) \|", README, re.M)


@pytest.mark.parametrize(("name", "link", "lines"), READING_ORDER, ids=[name for name, _, _ in READING_ORDER])
def test_the_reading_order_names_files_of_about_that_length(name: str, link: str, lines: str):
    assert name == link
    assert abs(len((ROOT / name).read_text().splitlines()) - int(lines)) <= 10


def test_the_reading_order_holds_the_whole_model():
    named = {name for name, _, _ in READING_ORDER} | {"llama3/model/linear.py", "llama3/model/__init__.py"}
    assert {f"llama3/model/{file.name}" for file in (ROOT / "llama3" / "model").glob("*.py")} <= named


def test_every_link_into_the_tree_leads_somewhere():
    links = [link for link in re.findall(r"\]\((.+?)\)", README) if "://" not in link]
    assert len(links) > 15 and all((ROOT / link).exists() for link in links)


def test_there_is_no_blank_left_to_fill():
    assert "@@" not in README
