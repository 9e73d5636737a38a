"""Reading JSON that comes from outside: a model's answer, a file of a checkpoint.

`json.loads` turns 1e999 into infinity, and raises RecursionError for text that is nested too deeply. A caller who
expects ValueError for everything that is not JSON would miss both.
"""

import json
from pathlib import Path
from typing import Any

from llama3.errors import CheckpointError


def read_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError for what is not JSON, and for numbers too large for a float64."""
    try:
        return json.loads(text, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json_file(path: Path) -> dict[str, Any]:
    """The object in one of a checkpoint's JSON files. Raises CheckpointError with the file's name."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(fields).__name__}")
    return fields


def _finite(number: str) -> float:
    if abs(value := float(number)) == float("inf"):
        raise ValueError(f"{number[:40]} is too large for a number")
    return value
