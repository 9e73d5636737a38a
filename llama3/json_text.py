"""JSON that a model or a client has written is read here, and JSON for one line is written.

`json.loads` turns 1e999 into infinity, and raises RecursionError for text that is nested too deeply. A caller who
expects ValueError for everything that is not JSON would miss both. It also takes NaN and Infinity, which JSON lacks.
"""

import json
from typing import Any, NoReturn

# JSON allows these three in a string, but many readers take them for the end of a line.
LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def read_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError for what is not JSON, and for numbers too large for a float64."""
    try:
        return json.loads(text, parse_float=_finite, parse_constant=_not_json)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def encode_json(content: Any) -> bytes:
    """Compact JSON in UTF-8, on one line for every reader. Lone surrogates, which UTF-8 cannot encode, become "?".

    Raises ValueError for a number that JSON does not have.
    """
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(LINE_ENDS).encode("utf-8", "replace")


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _finite(number: str) -> float:
    if abs(value := float(number)) == float("inf"):
        raise ValueError(f"{number[:40]} is too large for a number")
    return value
