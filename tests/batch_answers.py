"""Compares the answers of two batches."""

import json
from typing import Any


def without_ids(text: str | bytes) -> list[Any]:
    """The answers, without what each run draws or reads from the clock."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            drawn = ("id", "request_id", "created", "created_at", "call_id")
            return {name: strip(inner) for name, inner in value.items() if name not in drawn}
        return [strip(inner) for inner in value] if isinstance(value, list) else value

    return [strip(json.loads(line)) for line in text.splitlines()]
