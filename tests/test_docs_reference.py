"""docs/cli.md and docs/api.md fit the code that they are made from."""

from pathlib import Path

import pytest

from docs.make_reference import PAGES

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("page", PAGES)
def test_a_reference_page_is_what_make_docs_writes(page: str):
    found = (DOCS / page).read_text(encoding="utf-8")
    assert found == PAGES[page](), f"docs/{page} no longer fits the code; run: make docs"


@pytest.mark.parametrize("page", PAGES)
def test_terminal_and_environment_do_not_change_a_page(page: str, monkeypatch: pytest.MonkeyPatch):
    expected = PAGES[page]()
    for name, value in (("COLUMNS", "40"), ("FORCE_COLOR", "1"), ("LLAMA3_TOP_P", "0.5"), ("LLAMA3_MODEL", "x")):
        monkeypatch.setenv(name, value)
    assert PAGES[page]() == expected
