"""The settings of a service on Ray Serve: from the arguments of `serve run`, a config file, or the environment."""

from pathlib import Path
from typing import Any

import pytest

from llama3.errors import RequestError
from llama3.ray.settings import Settings, from_args


def test_arguments_of_a_command_line_and_of_a_file_mean_the_same():
    words = {"slots": "8", "lora": "a=/one,b=/two", "limit": "tools=9", "allow_host": "a.example,b.example"}
    file = {
        "slots": 8,
        "lora": {"a": "/one", "b": "/two"},
        "limit": {"tools": 9},
        "allow_host": ["a.example", "b.example"],
    }
    found = from_args(words)
    assert found == from_args(file)
    assert found == Settings(
        slots=8, lora={"a": "/one", "b": "/two"}, limit={"tools": 9}, allow_host=("a.example", "b.example")
    )


def test_the_environment_sets_what_arguments_do_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "token").write_text(" secret\n")
    monkeypatch.setenv("LLAMA3_SLOTS", "7")
    monkeypatch.setenv("LLAMA3_QUEUE", "9")
    monkeypatch.setenv("LLAMA3_TOKEN_FILE", str(tmp_path / "token"))
    found = from_args({"queue": "3", "quiet": "true"})
    assert (found.slots, found.queue, found.token, found.quiet) == (7, 3, "secret", True)


@pytest.mark.parametrize(
    "args, named",
    [
        ({"slot": "8"}, "'slot' is no setting"),
        ({"slots": "many"}, "slots: 'many'"),
        ({"slots": "0"}, "slots"),
        ({"quiet": "perhaps"}, "quiet"),
        ({"lora": "a"}, "NAME=VALUE"),
        ({"limit": "tool=9"}, "'tool' is no limit"),
        ({"replicas": 3, "max_replicas": 2}, "max_replicas"),
        ({"token_file": "/nowhere/token"}, "/nowhere/token"),
    ],
)
def test_wrong_settings_are_refused_by_name(args: dict[str, Any], named: str):
    with pytest.raises(RequestError) as error:
        from_args(args)
    assert named in str(error.value) and "\n" not in str(error.value)
