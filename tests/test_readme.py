"""The README is short, its two commands come first, and its reading order is the one of the tree."""

import re

import pytest

from tests.pages import ROOT, blocks

README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
READING = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8")
READING_ORDER = re.findall(r"^\| \d+ \| \[`(.+?)`\]\((.+?)\) \| (\d+) \|", READING, re.M)
NAMES = [name.removeprefix("llama3/") for name, _, _ in READING_ORDER]


def test_it_is_at_most_130_lines_and_1200_words():
    assert len(TEXT.splitlines()) <= 130
    assert len(TEXT.split()) <= 1200


def test_the_two_commands_come_before_any_other_code():
    starts = [block.text for block in blocks(README) if block.language][:2]
    assert all(text.startswith("python3 -m venv .venv && ") and text.count("\n") == 1 for text in starts)
    assert "llama3 " in starts[0] and "pytest" in starts[1]
    assert len(re.findall(r"^python3 -m venv \.venv && ", TEXT, re.M)) == 2  # .ci/run runs each line of this kind


@pytest.mark.parametrize(("name", "link", "lines"), READING_ORDER, ids=NAMES)
def test_the_reading_order_names_files_of_about_that_length(name: str, link: str, lines: str):
    file = (ROOT / "docs" / link).resolve()
    assert file == ROOT / name
    assert abs(len(file.read_text(encoding="utf-8").splitlines()) - int(lines)) <= 10


def test_the_reading_order_is_numbered_and_holds_the_whole_model():
    numbers = re.findall(r"^\| (\d+) \|", READING, re.M)
    assert [int(number) for number in numbers] == list(range(1, len(NAMES) + 1))
    modules = (file for file in (ROOT / "llama3" / "model").rglob("*.py") if file.name != "__init__.py")
    files = {file.relative_to(ROOT / "llama3").as_posix() for file in modules}
    assert files == {name for name in NAMES if name.startswith("model/")}


def test_the_readme_has_the_same_order():
    section = TEXT[TEXT.index("## Learn it") : TEXT.index("## Check your numbers")]
    named = [name.removeprefix("llama3/") for name in re.findall(r"`([\w/]+\.py)`", section)]
    assert named == NAMES


@pytest.mark.parametrize("folder", ["model", "model/compiled"])
def test_the_models_docstrings_have_the_same_order(folder: str):
    docstring = (ROOT / "llama3" / folder / "__init__.py").read_text(encoding="utf-8").split('"""')[1]
    modules = [name.rpartition("/")[2][: -len(".py")] for name in NAMES if name.rpartition("/")[0] == folder]
    named = re.findall(r"\w+", docstring.partition("order")[2].partition(".")[0])  # the sentence with the order
    assert [word for word in named if word in modules] == modules


def test_every_kernel_stands_in_the_reading_order():
    kernels = {file.name for file in (ROOT / "kernels").iterdir()}
    assert kernels == set(re.findall(r"\]\(\.\./kernels/([\w.]+)\)", READING))


def test_there_is_no_blank_left_to_fill():
    assert "@@" not in TEXT
