"""Write the tour: the pages docs/tour/NN-name.md, their pictures and docs/tour/tour.ipynb, from docs/tour/src.

`make docs`, or `python -m docs.make_tour` in the root of the repository. tests/test_tour.py does the same and compares.
A source is Markdown, in which these lines and marks stand for what the builder puts there:

    {{ expression:format }}                     a number or a text that docs/tour/demo.py computes
    include plain.py:name                       the source of a function of a file of llama3/ or of the repository
    include plain.py:name "a" "b"               its lines from the first with "a" to the next with "b"
    a block of code of the language `compute`   is executed and not shown; one of the language `python` is shown
    picture name (what it shows): expression    an SVG, written to docs/tour/pictures
    claim expression                            what the paragraph above says; if it is false, the build fails

All expressions of a page share their names.
"""

import ast
import json
import re
import textwrap
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from docs.tour import demo, pictures

TOUR = Path(__file__).with_name("tour")
ROOT = Path(__file__).parents[1]
NOTE = "<!-- Written by `make docs` from src/{name}. Change that file; do not edit this one. -->"
SOURCES = sorted((TOUR / "src").glob("*.md"))
DIRECTIVE = re.compile(r"^(include|picture|claim) ")
BLOCK = re.compile(r"```(compute|python)\n(.+)\n```", re.S)
EXPRESSION = re.compile(r"\{\{ (.+?) ?\}\}")
PICTURE = re.compile(r"picture ([\w-]+) \((.+?)\): (.+)", re.S)
INCLUDE = re.compile(r'include (\S+?):(\w+)(?: "(.+)" "(.+)")?')


class NoLongerTrue(AssertionError):
    """A sentence of the tour that the demo contradicts."""


@dataclass
class Page:
    """A page while it is built: its text, its pictures by file name, and the cells of the notebook."""

    source: Path
    names: dict[str, Any] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)
    pictures: dict[str, str] = field(default_factory=dict)
    cells: list[tuple[str, str]] = field(default_factory=list)  # (kind, text)
    paragraph: str = ""
    false: list[str] = field(default_factory=list)  # sentences that are no longer true

    def value(self, expression: str) -> Any:
        try:
            return eval(expression, self.names)
        except Exception as error:
            raise ValueError(f"{self.source.name}: {expression}: {type(error).__name__}: {error}") from error

    def sentence(self, text: str) -> str:
        """Text with every {{ expression:format }} computed."""
        return EXPRESSION.sub(lambda match: self.value(f"f'''{{{match[1]}}}'''"), text)

    def code(self, text: str) -> None:
        """Add lines to the notebook's cell of code, a new one if text came between."""
        if self.cells and self.cells[-1][0] == "code":
            text = f"{self.cells.pop()[1]}\n{text}"
        self.cells.append(("code", text))

    def prose(self, text: str) -> None:
        self.paragraph = self.sentence(text)
        if re.match(r"[\w*{(\[]|`[^`]", text):  # a paragraph, no heading, table, list or block of code
            whole = re.sub(r"`[^`]+`", lambda code: code[0].replace(" ", "\0"), self.paragraph)  # code is not broken
            filled = textwrap.fill(whole, 120, break_long_words=False, break_on_hyphens=False)
            self.paragraph = filled.replace("\0", " ")
        self.text.append(self.paragraph)
        self.cells.append(("markdown", self.paragraph))
        for match in EXPRESSION.findall(text):
            self.code(f"print(f'''{{{match}}}''')")


def parts(text: str) -> Iterator[str]:
    """The paragraphs and directives of a source. A block of code is one part; a directive's next lines are indented."""
    part: list[str] = []
    fenced = False
    for line in [*text.splitlines(), ""]:
        directive = not fenced and DIRECTIVE.match(line)
        goes_on = line.startswith((" ", ")")) and part and DIRECTIVE.match(part[0])
        if part and not fenced and (directive or not line.strip() or (DIRECTIVE.match(part[0]) and not goes_on)):
            yield "\n".join(part)
            part = []
        if line.startswith("```"):
            fenced = not fenced
        if line.strip() or fenced:
            part.append(line)


def include(part: str) -> str:
    """The lines that an include names, as a block of code under a link to their file."""
    match = INCLUDE.fullmatch(part)
    assert match, f"not an include: {part}"
    file, name, first, last = match.groups()
    path = next(path for path in (ROOT / "llama3" / file, ROOT / file) if path.is_file())
    source, shown = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
    lines = source.splitlines()
    if file.endswith(".py"):
        (node,) = [node for node in ast.walk(ast.parse(source)) if getattr(node, "name", None) == name]
        lines = lines[node.lineno - 1 : node.end_lineno]
    else:  # CUDA C++: to the closing brace in the first column
        begin = line_with(f" {name}(", lines, part)
        lines = lines[begin : lines.index("}", begin) + 1]
    if first:
        lines = lines[line_with(first, lines, part) :]
        lines = lines[: line_with(last, lines, part) + 1]
    code = textwrap.dedent("\n".join(lines))
    language = "python" if file.endswith(".py") else "cpp"
    return f"From [`{shown}`](../../{shown}), `{name}`:\n\n```{language}\n{code}\n```"


def line_with(text: str, lines: list[str], part: str) -> int:
    """The index of the first line with the text. Raises ValueError, naming the include, if there is none."""
    for i, line in enumerate(lines):
        if text in line:
            return i
    raise ValueError(f"{part}: no line there has {text!r}; the code has changed, so change the include")


def build(source: Path) -> Page:
    """A source -> its page. `false` has the paragraphs of the claims that do not hold."""
    page = Page(source, {**vars(pictures), **vars(demo)})
    for part in parts(source.read_text(encoding="utf-8")):
        kind = match[1] if (match := DIRECTIVE.match(part)) else ""
        if kind == "include":
            page.text.append(include(part))
            page.cells.append(("markdown", page.text[-1]))
        elif block := BLOCK.fullmatch(part):
            exec(block[2], page.names)
            page.code(block[2])
            page.text += [part] if block[1] == "python" else []
        elif kind == "claim":
            if not page.value(part.removeprefix("claim ")):
                page.false.append(f"{source.name}: no longer true: {page.paragraph}\n(not {part[6:]})")
            page.code(f"assert {part.removeprefix('claim ')}")
        elif kind == "picture":
            found = PICTURE.fullmatch(part)
            assert found, f"not a picture: {part}"
            file = f"{source.stem[:2]}-{found[1]}.svg"
            page.pictures[file] = page.value(found[3])
            page.text.append(f"![{page.sentence(found[2])}](pictures/{file})")
            page.code(f"display(Picture({found[3]}))")
        else:
            page.prose(part)
    return page


def pages(left_out: Collection[str] = ()) -> dict[str, Page]:
    """The pages by name, as docs/tour has them: with a note at the top and links to the neighbours at the end.

    Raises NoLongerTrue, with all sentences that are false, if there are any.
    """
    names = [source.name for source in SOURCES]
    built = {source.name: build(source) for source in SOURCES if source.name not in left_out}
    if false := [sentence for page in built.values() for sentence in page.false]:
        raise NoLongerTrue("\n".join(false))
    for name, page in built.items():
        i = names.index(name)
        before = f"[back]({names[i - 1]})" if i else "[back](README.md)"
        after = f"[next]({names[i + 1]})" if i + 1 < len(names) else "[all pages](README.md)"
        page.text = [page.text[0], NOTE.format(name=name), *page.text[1:], f"{before} | {after}"]
    return built


def notebook(built: dict[str, Page]) -> str:
    """The pages as one notebook. Its code imports docs/tour/demo.py, which Jupyter finds in the notebook's folder."""
    cells = [("markdown", "# The tour\n\nThe pages of docs/tour, with the code that computes their numbers."), START]
    cells += [cell for page in built.values() for cell in page.cells]
    out = []
    for i, (kind, text) in enumerate(cells):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{i}", "metadata": {}}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        out.append(cell | {"source": text.splitlines(keepends=True)})
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return json.dumps({"cells": out, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"


START = ("code", "import sys\n\nsys.path.append('../..')  # for page 11\nfrom demo import *\nfrom pictures import *")


def files(left_out: Collection[str] = ()) -> dict[str, str]:
    """What the tour consists of: path in docs/tour -> text. left_out: pages that cannot be built here."""
    built = pages(left_out)
    out = {name: "\n\n".join(page.text) + "\n" for name, page in built.items()}
    out |= {f"pictures/{name}": svg for page in built.values() for name, svg in page.pictures.items()}
    return out | {"tour.ipynb": notebook(built)}


def main(write: Callable[[str], None] = print) -> None:
    for name, text in files().items():
        (TOUR / name).parent.mkdir(exist_ok=True)
        (TOUR / name).write_text(text, encoding="utf-8", newline="\n")
        write(f"docs/tour/{name}, {len(text.encode()):,} bytes")


if __name__ == "__main__":
    main()
