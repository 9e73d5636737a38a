"""The readers of JSON from outside raise their documented error, whatever the text: never RecursionError."""

from pathlib import Path

import pytest

from llama3.checkpoint.json_file import read_json_file
from llama3.errors import CheckpointError
from llama3.json_text import read_json


@pytest.mark.parametrize("text", ["8E2511041255", "[1e999]", "-1e400", "{", "[" * 100_000])
def test_what_is_no_json_or_beyond_all_bounds_is_refused(text):
    with pytest.raises(ValueError):
        read_json(text)


def test_json_nested_without_end_is_refused(tmp_path: Path):
    (tmp_path / "x.json").write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match=r"x\.json: not valid JSON"):
        read_json_file(tmp_path / "x.json")
