"""The Markdown pages, taken apart: their blocks of code, their links, their headings."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/tour").glob("*.md")),
    ROOT / "tests" / "README.md",
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A block of code, and its output if the page prints it: a block without a language that follows at once."""

    language: str
    text: str
    output: str | None

    @property
    def commands(self) -> list[str]:
        """The commands of a block of sh, without comments; lines joined by && are several."""
        lines = re.sub(r"\\\n\s*", "", self.text).splitlines()
        lines = [re.sub(r"\s+#.*", "", line).strip() for line in lines]
        return [part.strip() for line in lines for part in line.split(" && ") if part.strip()]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    out = []
    for i, match in enumerate(found):
        following = found[i + 1] if i + 1 < len(found) else None
        below = following is not None and not following[1] and not text[match.end() : following.start()].strip()
        out.append(Block(match[1], match[2], following[2] if following and below else None))
    return out


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """The targets of all links and pictures, but for those to other sites."""
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in link]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings: lower case, without punctuation, with dashes for spaces."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "")).strip().lower().replace(" ", "-") for heading in headings}
