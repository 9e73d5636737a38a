"""Reads the JSON files of a checkpoint: configs, the index of the shards, an adapter's config."""

import json
from pathlib import Path
from typing import Any

from llama3.errors import CheckpointError


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
