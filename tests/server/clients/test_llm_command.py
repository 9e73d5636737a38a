"""Simon Willison's command `llm`, with the server's models in its list of extra models, as a user sets it up."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("llm")  # the extra `tools`

from click.testing import CliRunner
from llm.cli import cli

from llama3 import Llama
from tests.server.clients.conftest import SCHEMA, TOKEN, TOO_LONG, the_rest_is_not_generated

MODELS = """
- model_id: demo
  model_name: llama3
  api_base: {address}/v1
  api_key_name: demo
  supports_schema: true
  supports_tools: true
- model_id: raw
  model_name: llama3
  api_base: {address}/v1
  api_key_name: demo
  completion: true
"""
FUNCTION = '''
def get_weather(city: str) -> str:
    """The weather of a city"""
    return "12 degrees, sunny"
'''


@pytest.fixture(autouse=True)
def settings(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "extra-openai-models.yaml").write_text(MODELS.format(address=address))
    (tmp_path / "keys.json").write_text(json.dumps({"demo": TOKEN}))
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))


def run(*arguments: str, fails: bool = False) -> str:
    ran = CliRunner().invoke(cli, arguments)
    assert (ran.exit_code != 0) == fails, ran.output
    return ran.output


def test_the_answer_is_that_of_the_python_api_whole_and_streamed(answer: str):
    ask = ["-m", "demo", "What is RoPE?", "-o", "temperature", "0", "-o", "seed", "0"]
    assert run(*ask) == run(*ask, "--no-stream") == answer + "\n"


def test_usage_is_logged():
    run("-m", "demo", "What is RoPE?", "-o", "temperature", "0")
    (logged,) = json.loads(run("logs", "--json"))
    assert logged["input_tokens"] > 5 and logged["output_tokens"] > 5


def test_json_follows_the_schema():
    found = run("-m", "demo", "What is RoPE?", "--schema", json.dumps(SCHEMA))
    assert json.loads(found).keys() == SCHEMA["properties"].keys()


@pytest.mark.parametrize("stream", [[], ["--no-stream"]], ids=["streamed", "whole"])
def test_a_function_is_called_and_call_and_result_are_in_the_next_prompt(stream):
    ask = ["-m", "demo", "What is the weather in Paris?", "-o", "temperature", "0", "--functions", FUNCTION]
    run(*ask, *stream, "-o", "max_tokens", "20")  # enough for one call; the demo would call again and again
    first, second, *_ = sorted(json.loads(run("logs", "--json")), key=lambda logged: logged["id"])
    assert [(call["name"], call["arguments"]) for call in first["tool_calls"]] == [("get_weather", {"city": "Paris"})]
    assert [result["output"] for result in second["tool_results"]] == ["12 degrees, sunny"]
    assert second["input_tokens"] > first["input_tokens"]


def test_an_error_says_what_is_wrong():
    assert TOO_LONG in run("-m", "demo", "hi", "-o", "max_tokens", "100000", fails=True)


def test_ctrl_c_ends_the_request(address: str):
    without_end = json.dumps({str(Llama.load().tokenizer.encode("The")[0]): 100})
    options = ["-o", "max_tokens", "1500", "-o", "logit_bias", without_end]
    ask = [sys.executable, "-m", "llm", "-m", "demo", "Go on", *options]
    with the_rest_is_not_generated(address):
        process = subprocess.Popen(ask, stdout=subprocess.PIPE)
        assert process.stdout and process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def test_a_raw_text_is_continued():
    found = run("-m", "raw", "The KV cache", "-o", "temperature", "0", "-o", "max_tokens", "9")
    assert found == Llama.load().generate("The KV cache", temperature=0, max_tokens=9).text + "\n"
