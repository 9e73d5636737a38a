"""The tour is what its sources say of the demo: pages, numbers and pictures are built again and compared."""

import contextlib
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from docs import make_tour
from docs.make_tour import SOURCES, TOUR, NoLongerTrue, build
from docs.tour import demo
from tests.cuda.emulator.build import COMPILER
from tests.pages import links

NUMBER = re.compile(r"(?<![\w#])-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
KERNELS = "11-kernels.md"  # this page compiles kernels
KINDS = ("[0-9]*.md", "pictures/*.svg", "*.ipynb")
FILES = {path.relative_to(TOUR).as_posix(): path.read_text("utf-8") for kind in KINDS for path in TOUR.glob(kind)}
PAGES = sorted(name for name in FILES if name.endswith(".md"))
PICTURES = sorted(name for name in FILES if name.endswith(".svg"))


# ---- pages, numbers, pictures and claims


@pytest.mark.slow
def test_everything_is_what_the_demo_gives_and_every_claim_is_true():
    """Raises NoLongerTrue, with the sentences, if claims are false. Without g++, page 11 is not built."""
    built = make_tour.files(left_out=[KERNELS] if COMPILER is None else [])
    if COMPILER is None:
        built |= {name: text for name, text in FILES.items() if name.startswith(("11-", "pictures/11-", "tour"))}
    assert FILES.keys() == built.keys(), "run: make docs"
    for name, text in built.items():
        assert differences(FILES[name], text) == [], f"{name} is old; run: make docs"


@pytest.mark.parametrize("page", ["05-rope.md", "08-residual.md"])
def test_a_page_is_what_the_demo_gives(page: str):
    """Two pages always; the test above builds all."""
    built = make_tour.files(left_out=[source.name for source in SOURCES if source.name != page])
    for name in built.keys() - {"tour.ipynb"}:
        assert differences(FILES[name], built[name]) == [], f"{name} is old; run: make docs"


def differences(found: str, expected: str) -> list[tuple[str, str]]:
    """Where two texts differ: words exactly, numbers by more than 1 percent and 1 in their last decimal place."""
    split = [(NUMBER.split(text), NUMBER.findall(text)) for text in (found, expected)]
    words = [[" ".join(part.split()) for part in parts] for parts, _ in split]
    if words[0] != words[1]:
        return [pair for pair in zip(*words) if pair[0] != pair[1]] or [(found, expected)]
    return [(a, b) for a, b in zip(split[0][1], split[1][1]) if not near(a.replace(",", ""), b.replace(",", ""))]


def near(a: str, b: str) -> bool:
    places = len(a.partition(".")[2])
    unit = 1.001 * 10.0**-places if places else 0  # whole numbers below 100 are equal or not
    return a == b or abs(float(a) - float(b)) <= max(unit, 0.01 * abs(float(b)))


def test_the_comparison_sees_a_word_and_a_second_digit():
    assert differences("it is 0.91, of 2,000", "it is 0.90, of 2,001") == []
    assert differences("0.93", "0.90") and differences("4 layers", "5 layers") and differences("it was 1", "it is 1")


def test_a_claim_that_is_false_fails_with_its_sentence(tmp_path: Path):
    source = tmp_path / "01-wrong.md"
    source.write_text("# Wrong\n\nThe demo has {{ config.n_layers }} layers.\n\nclaim config.n_layers == 5\n")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(NoLongerTrue, match="true: The demo has 4 layers"):
        patch.setattr(make_tour, "SOURCES", [source])
        make_tour.pages()


def test_another_demo_makes_a_sentence_false(monkeypatch: pytest.MonkeyPatch):
    """As if it had been trained anew, and head 1 of layer 0 now read all tokens alike."""
    name = "layers.0.heads.1.weights"
    monkeypatch.setitem(demo.seen, name, np.tri(len(demo.tokens)) / np.arange(1, len(demo.tokens) + 1)[:, None])
    (sentence, *_) = build(TOUR / "src" / "06-attention.md").false
    assert sentence.startswith("06-attention.md: no longer true: The framed rows") and "puts 0.06 of its" in sentence


def test_a_name_that_does_not_exist_is_reported_with_its_page(tmp_path: Path):
    source = tmp_path / "01-wrong.md"
    source.write_text("# Wrong\n\nThe demo has {{ config.n_layer }} layers.\n")
    with pytest.raises(ValueError, match=r"01-wrong.md: .*config.n_layer"):
        build(source)


def test_an_include_that_finds_no_line_is_reported(tmp_path: Path):
    source = tmp_path / "01-wrong.md"
    source.write_text('# Wrong\n\ninclude plain.py:forward "for i, layer" "no such line"\n')
    with pytest.raises(ValueError, match=r"include plain.py:forward .* no line there has 'no such line'"):
        build(source)


# ---- what each page has


def test_there_is_a_page_for_each_source_and_a_link_to_it():
    assert [source.name for source in SOURCES] == PAGES
    assert [name[:2] for name in PAGES] == [f"{i:02}" for i in range(13)]
    assert [link for link in links(TOUR / "README.md") if link in FILES] == [*PAGES, "tour.ipynb"]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_short_and_has_its_parts(page: str):
    text, source = FILES[page], (TOUR / "src" / page).read_text(encoding="utf-8")
    assert 40 <= len(text.splitlines()) <= 100
    assert all(
        part in text for part in ("**Question.**", "](pictures/", "## The code", "## The numbers", "## Break it")
    )
    assert len(re.findall(r"^include ", source, re.M)) >= 1 and len(re.findall(r"^claim ", source, re.M)) >= 2
    included = re.findall(r"^From [^\n]+:\n\n```\w+\n(.+?)```", text, re.M | re.S)
    lines = [code.count("\n") for code in included]
    assert 5 <= sum(lines) <= 15


@pytest.mark.parametrize("picture", PICTURES)
def test_a_picture_is_small_light_and_dark_and_asks_nobody(picture: str):
    text = FILES[picture]
    assert len(text.encode()) <= 200_000
    assert re.findall(r"https?://[^\"]+", text) == ["http://www.w3.org/2000/svg"]
    assert "prefers-color-scheme:dark" in text and "<script" not in text
    page = next(page for page in PAGES if page.startswith(Path(picture).name[:2]))
    assert f"]({picture})" in FILES[page]


# ---- the notebook


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the kernels with")
def test_the_notebook_s_cells_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [str(TOUR), *sys.path])
    for module in ("demo", "pictures"):  # in Jupyter they are found in the notebook's folder; the same modules here
        monkeypatch.setitem(sys.modules, module, sys.modules[f"docs.tour.{module}"])
    shown: list[str] = []
    names = {"display": lambda picture: shown.append(picture._repr_svg_())}
    with contextlib.redirect_stdout(io.StringIO()):
        for cell in json.loads(FILES["tour.ipynb"])["cells"]:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), names)
    assert len(shown) == len(PICTURES)
