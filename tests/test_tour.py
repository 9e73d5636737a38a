"""The tour is what its sources say of the demo: every page, number and picture is rebuilt here and compared."""

import contextlib
import io
import json
import re
import sys
from pathlib import Path

import pytest

from docs import make_tour
from docs.make_tour import TOUR, NoLongerTrue, build
from tests.cuda.emulator.build import COMPILER
from tests.pages import ROOT, links

NUMBER = re.compile(r"(?<![\w#])-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")


KERNELS = "11-kernels.md"  # this page compiles kernels
PICTURES_OF_KERNELS = {f"pictures/{path.name}" for path in (TOUR / "pictures").glob("11-*.svg")}


@pytest.fixture(scope="module")
def built() -> dict[str, str]:
    """Raises NoLongerTrue, with its sentence, if a claim is false. Without g++, page 11 is not built."""
    if COMPILER is not None:
        return make_tour.files()
    as_they_are = {KERNELS, "tour.ipynb", *PICTURES_OF_KERNELS}
    files = {name: (TOUR / name).read_text(encoding="utf-8") for name in as_they_are}
    return make_tour.files(left_out=[KERNELS]) | files


def differences(found: str, expected: str) -> list[tuple[str, str]]:
    """Where two texts differ: words exactly, numbers by more than 1 in 100 and more than 1 in their last digit."""
    split = [(NUMBER.split(text), NUMBER.findall(text)) for text in (found, expected)]
    words = [[" ".join(part.split()) for part in parts] for parts, _ in split]
    if words[0] != words[1]:
        return [pair for pair in zip(*words) if pair[0] != pair[1]] or [(found, expected)]
    return [(a, b) for a, b in zip(split[0][1], split[1][1]) if not near(a.replace(",", ""), b.replace(",", ""))]


def near(a: str, b: str) -> bool:
    unit = 10.0 ** -len(a.partition(".")[2])
    return abs(float(a) - float(b)) <= max(1.001 * unit, 0.01 * abs(float(b))) or a == b


def test_pages_pictures_and_notebook_are_what_the_demo_gives(built: dict[str, str]):
    kinds = ("[0-9]*.md", "*/*.svg", "*.ipynb")
    there = {path.relative_to(TOUR).as_posix() for kind in kinds for path in TOUR.glob(kind)}
    assert there == built.keys(), "run: make docs"
    for name, text in built.items():
        assert differences((TOUR / name).read_text(encoding="utf-8"), text) == [], f"{name} is old; run: make docs"


def test_the_comparison_sees_a_word_and_a_second_digit():
    assert differences("it is 0.91, of 2,000", "it is 0.90, of 2,001") == []
    assert differences("0.93", "0.90") and differences("12", "21") and differences("it was 1", "it is 1")


def test_a_claim_that_is_false_fails_with_its_sentence(tmp_path: Path):
    source = tmp_path / "01-wrong.md"
    source.write_text("# Wrong\n\nThe demo has {{ config.n_layers }} layers.\n\nclaim config.n_layers == 5\n")
    with pytest.raises(NoLongerTrue, match="no longer true: The demo has 4 layers"):
        build(source)


def test_each_page_has_its_parts(built: dict[str, str]):
    pages = {name: text for name, text in built.items() if name.endswith(".md")}
    for name, text in pages.items():
        assert 40 <= len(text.splitlines()) <= 130, (name, len(text.splitlines()))
        assert all(part in text for part in ("**Question.**", "](pictures/", "```python\n", "## Break it")), name
        assert (TOUR / "src" / name).read_text(encoding="utf-8").count("\nclaim ") >= 2, name
        code = re.search(r"```python\n(.+?)```", text, re.S)
        assert code and 2 <= code[1].count("\n") <= 20, name
    index = links(TOUR / "README.md")
    assert set(pages) <= set(index) and "tour.ipynb" in index


def test_pictures_are_small_and_ask_nobody(built: dict[str, str]):
    for name, text in built.items():
        if name.endswith(".svg"):
            assert len(text.encode()) <= 200_000, name
            assert re.findall(r"https?://[^\"]+", text) == ["http://www.w3.org/2000/svg"], name
            assert "prefers-color-scheme:dark" in text, name


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the kernels with")
def test_the_notebook_s_cells_run(built: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "tour"))
    for module in ("demo", "pictures"):  # in Jupyter they are found in the notebook's folder; the same modules here
        monkeypatch.setitem(sys.modules, module, sys.modules[f"docs.tour.{module}"])
    shown: list[str] = []
    names = {"display": lambda picture: shown.append(picture._repr_svg_())}
    with contextlib.redirect_stdout(io.StringIO()):
        for cell in json.loads(built["tour.ipynb"])["cells"]:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), names)
    assert len(shown) == sum(name.endswith(".svg") for name in built)
