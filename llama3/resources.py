"""Finds files that ship with llama3: in the package or, in the source tree, beside it (`weights/`, `kernels/`)."""

from importlib.resources import files
from pathlib import Path


def resource(*parts: str) -> Path:
    """The path of a shipped file or folder: `resource("weights", "demo")`.

    In an installed wheel these folders are inside the package; in a checkout or an editable install they are beside it.
    Raises FileNotFoundError if the file is in neither place.
    """
    package = Path(str(files("llama3")))
    for base in (package, package.parent):
        if (path := base.joinpath(*parts)).exists():
            return path
    raise FileNotFoundError(f"{'/'.join(parts)} is not in this installation: neither in {package} nor beside it")
