"""Files that ship with llama3 but stand beside the package in its source tree (`weights/`)."""

from importlib.resources import files
from pathlib import Path


def resource(*parts: str) -> Path:
    """The path of a shipped file or folder: `resource("weights", "demo")`.

    An installed wheel holds these folders inside the package; a checkout or an editable install holds them beside it.
    Raises FileNotFoundError if neither does.
    """
    package = Path(str(files("llama3")))
    for base in (package, package.parent):
        if (path := base.joinpath(*parts)).exists():
            return path
    raise FileNotFoundError(f"{'/'.join(parts)} is not in this installation: neither in {package} nor beside it")
