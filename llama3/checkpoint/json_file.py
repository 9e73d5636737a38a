"""Reads the text files of a checkpoint: configs, the index of the shards, an adapter's config, a chat template."""

import json
from pathlib import Path
from typing import Any

from llama3.errors import CheckpointError
from llama3.lfs_pointer import LFS_POINTER, is_lfs_pointer


def read_json_file(path: Path) -> dict[str, Any]:
    """The object in one of a checkpoint's JSON files. Raises CheckpointError with the file's name."""
    data = _read(path)
    try:
        fields = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(fields).__name__}")
    return fields


def read_text_file(path: Path) -> str:
    """The text of a file in UTF-8. Raises CheckpointError with the file's name."""
    data = _read(path)
    try:
        return data.decode()
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid UTF-8: {error}") from error


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if is_lfs_pointer(data):
        raise CheckpointError(f"{path}: {LFS_POINTER}")
    return data
