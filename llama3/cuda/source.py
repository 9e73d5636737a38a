"""A kernel's source text, with the headers of `kernels/` pasted in.

CuPy caches a compiled kernel under a key made of the options and the text, and does not look into included files. It
would not notice a changed header, so each kernel is compiled from one text.
"""

import re
from pathlib import Path

from llama3.resources import resource

INCLUDE = re.compile(r'\s*#include "(.+)"')


def kernel_path(file: str) -> Path:
    """The path of a file in `kernels/`. An absolute path is returned as it is."""
    return resource("kernels") / file


def kernel_source(file: str) -> str:
    """The text to compile, with every header in it once. Compiler errors name the original file and line."""
    return "".join(_paste(kernel_path(file), set()))


def _paste(path: Path, seen: set[Path]) -> list[str]:
    seen.add(path)
    out = [f'#line 1 "{path.name}"\n']
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if include := INCLUDE.match(line):
            header = kernel_path(include[1])
            if header not in seen:
                out += _paste(header, seen)
            out.append(f'#line {number + 1} "{path.name}"\n')
        else:
            out.append("\n" if line == "#pragma once" else line + "\n")
    return out
