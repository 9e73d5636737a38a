"""EleutherAI's lm_eval measures the demo over HTTP, and gets the numbers that the Python API computes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lm_eval")  # the extra `tools`
pytest.importorskip("transformers")  # the extra `oracle`: its tokenizer

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.api_models import JsonChatStr
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from lm_eval.tasks import TaskManager

from llama3 import Llama
from tests.server.clients.conftest import MODEL, QUESTION, TOKEN, TOO_LONG
from tests.server.running import ROOT

TEXT = "The KV cache keeps the keys and values of all earlier tokens"
OPTIONS = {"temperature": 0, "max_gen_toks": 20}


@pytest.fixture(scope="module")
def llama() -> Llama:
    return Llama.load()


@pytest.fixture(scope="module", params=[1, 3], ids=["one text a request", "three texts a request"])
def completions(request: pytest.FixtureRequest, address: str, llama: Llama) -> LocalCompletionsAPI:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", TOKEN)
        lm = LocalCompletionsAPI(
            base_url=f"{address}/v1/completions",
            model=MODEL,
            tokenizer=f"{ROOT}/weights/demo",
            tokenizer_backend="huggingface",
            custom_prefix_token_id=llama.tokenizer.bos_id,
            batch_size=request.param,
            max_length=2048,
            max_retries=1,
        )
        lm.header  # noqa: B018  reads the token now
    return lm


@pytest.fixture(scope="module")
def chat(address: str) -> LocalChatCompletion:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", TOKEN)
        lm = LocalChatCompletion(base_url=f"{address}/v1/chat/completions", model=MODEL, max_retries=1)
        lm.header  # noqa: B018
    return lm


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, one, i) for i, one in enumerate(arguments)]


def log_probabilities(llama: Llama, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Of each token but the first: its log probability behind those before it, and whether it is the likeliest."""
    logits = llama.logits(ids)[:-1].astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    following = np.array(ids[1:])
    return logprobs[np.arange(len(following)), following], logits.argmax(1) == following


def test_generate_until_gives_the_texts_of_the_python_api(completions: LocalCompletionsAPI, llama: Llama):
    prompts = [TEXT[:12], "RoPE", TEXT[:27], "Grouped-query attention"]
    found = completions.generate_until(
        requests("generate_until", *((p, {**OPTIONS, "until": [" keys"]}) for p in prompts))
    )
    ids = [llama.tokenizer.encode(prompt) for prompt in prompts]  # what lm_eval sends: no <|begin_of_text|>
    assert found == [llama.generate(prompt, temperature=0, max_tokens=20, stop=[" keys"]).text for prompt in ids]


def test_loglikelihood_is_that_of_the_models_logits(completions: LocalCompletionsAPI, llama: Llama):
    pairs = [(TEXT[:12], TEXT[12:]), (TEXT[:12], " is a sampler"), (TEXT[:27], TEXT[27:]), ("RoPE", " rotates")]
    found = completions.loglikelihood(requests("loglikelihood", *pairs))
    for (context, continuation), (total, is_greedy) in zip(pairs, found, strict=True):
        start = len(llama.tokenizer.encode(context)) - 1
        logprobs, likeliest = log_probabilities(llama, llama.tokenizer.encode(context + continuation))
        assert total == pytest.approx(logprobs[start:].sum(), rel=1e-5)
        assert is_greedy == likeliest[start:].all()


def test_loglikelihood_rolling_is_that_of_the_whole_text(completions: LocalCompletionsAPI, llama: Llama):
    texts = [TEXT, "RoPE rotates queries and keys", "A text"]
    found = completions.loglikelihood_rolling(requests("loglikelihood_rolling", *((text,) for text in texts)))
    bos = llama.tokenizer.bos_id  # lm_eval's prefix
    expected = [log_probabilities(llama, [bos, *llama.tokenizer.encode(text)])[0].sum() for text in texts]
    assert found == pytest.approx(expected, rel=1e-5)


def test_chat_completions_generate_the_answer(chat: LocalChatCompletion, llama: Llama):
    ask = (JsonChatStr(json.dumps(QUESTION)), {**OPTIONS, "until": [" tokens"]})
    expected = llama.chat(QUESTION, temperature=0, max_tokens=20, stop=[" tokens"]).text
    assert chat.generate_until(requests("generate_until", ask)) == [expected]


def test_the_log_says_what_is_wrong_with_a_request(chat: LocalChatCompletion, caplog: pytest.LogCaptureFixture):
    ask = (JsonChatStr(json.dumps(QUESTION)), {"max_gen_toks": 100_000})
    with pytest.raises(Exception, match="413"):
        chat.generate_until(requests("generate_until", ask))
    assert TOO_LONG in caplog.text


def test_a_task_of_multiple_choice_has_the_models_choices(
    completions: LocalCompletionsAPI, llama: Llama, tmp_path: Path
):
    choices = ["keys and values", "words and pictures"]
    rows = [{"start": TEXT[:24], "right": right} for right in (0, 1)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = ConfigurableTask(
        config={
            "task": "cache",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}, "cache_dir": str(tmp_path)},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{start}}",
            "doc_to_choice": choices,
            "doc_to_target": "right",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
    )
    no_others = TaskManager(include_defaults=False)  # it would read thousands of files
    found = lm_eval.simple_evaluate(completions, tasks=[task], task_manager=no_others, bootstrap_iters=0)
    assert found["results"]["cache"]["acc,none"] == 0.5
