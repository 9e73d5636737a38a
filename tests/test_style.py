"""Limits that keep the code readable: lines, functions, and a docstring in every module and every test file."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "llama3").rglob("*.py"))
TESTS = [path for path in sorted((ROOT / "tests").rglob("*.py")) if path.read_text().strip()]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_no_line_is_longer_than_120_characters_and_no_function_than_60_lines(path: Path):
    text = path.read_text()
    assert [line for line in text.splitlines() if len(line) > 120] == []
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [f.name for f in functions if f.end_lineno - f.lineno >= 60] == []


@pytest.mark.parametrize("path", [*MODULES, *TESTS], ids=name)
def test_every_module_and_test_file_says_what_it_holds(path: Path):
    assert ast.get_docstring(ast.parse(path.read_text()))
