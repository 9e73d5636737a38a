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


@pytest.mark.parametrize("text", ["secret", "secret\n", " secret\r\n"])
def test_white_space_around_a_token_does_not_count(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A Secret of Kubernetes often ends in a line feed, which no header can bring."""
    (tmp_path / "token").write_text(text)
    assert from_args({"token": text}).token == "secret"
    assert from_args({"token_file": str(tmp_path / "token")}).token == "secret"
    monkeypatch.setenv("LLAMA3_TOKEN", text)
    assert from_args({}).token == "secret"


def test_an_argument_counts_more_than_the_environment_and_two_tokens_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "token").write_text("from-file")
    monkeypatch.setenv("LLAMA3_TOKEN_FILE", str(tmp_path / "token"))
    assert from_args({"token": "from-argument"}).token == "from-argument"
    monkeypatch.setenv("LLAMA3_TOKEN", "from-variable")
    with pytest.raises(RequestError, match="token and token_file are both set"):
        from_args({})


def test_hosts_and_origins_are_read_as_requests_name_them():
    found = from_args({"allow_host": "LLM.Example,::1", "allow_origin": ["https://A.example:443/"]})
    assert found.allow_host == ("llm.example", "::1") and found.allow_origin == ("https://a.example",)


def test_folders_that_are_here_get_their_full_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A replica may run in another folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    here = str(tmp_path / "here")
    assert from_args({"model": "here", "lora": {"a": "here"}}) == Settings(model=here, lora={"a": here})
    assert from_args({"model": "OWNER/NAME", "lora": {}}).model == "OWNER/NAME"


@pytest.mark.parametrize(
    "args, named",
    [
        ({"slot": "8"}, "'slot' is no setting"),
        ({"slots": "many"}, "slots: 'many'"),
        ({"slots": "0"}, "slots: 0 is too small"),
        ({"quiet": "perhaps"}, "quiet: 'perhaps' is neither"),
        ({"lora": "a"}, "NAME=VALUE"),
        ({"limit": "tool=9"}, "'tool' is no limit"),
        ({"limit": "tools=0"}, "limit: tools is 0"),
        ({"replicas": 3, "max_replicas": 2}, "max_replicas: 2 is less than replicas (3)"),
        ({"token": ""}, "token: no token"),
        ({"token": "two words"}, "token: no token"),
        ({"token": "a", "token_file": "b"}, "both set"),
        ({"allow_host": ["https://a.example"]}, "'https://a.example' is no host name"),
        ({"allow_origin": "a.example"}, "'a.example' is no origin"),
        ({"token_file": "/nowhere/token"}, "/nowhere/token"),
    ],
)
def test_wrong_settings_are_refused_by_name(args: dict[str, Any], named: str):
    with pytest.raises(RequestError) as error:
        from_args(args)
    assert named in str(error.value) and "\n" not in str(error.value)
