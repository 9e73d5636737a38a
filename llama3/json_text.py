"""Reading JSON that a model or a client has written.

`json.loads` turns 1e999 into infinity, and raises RecursionError for text that is nested too deeply. A caller who
expects ValueError for everything that is not JSON would miss both.
"""

import json
from typing import Any


def read_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError for what is not JSON, and for numbers too large for a float64."""
    try:
        return json.loads(text, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _finite(number: str) -> float:
    if abs(value := float(number)) == float("inf"):
        raise ValueError(f"{number[:40]} is too large for a number")
    return value
