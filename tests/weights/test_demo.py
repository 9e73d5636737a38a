"""The demo that ships has the promised size and architecture, transformers' logits, and sensible answers."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from corpus import HERE, Corpus
from score import Judge, read_questions, with_llama3
from score_tools import right, written
from tool_requests import ToolCorpus

from llama3 import Llama
from llama3.parity import assert_close, read_reference
from llama3.tools import read_calls

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "demo_reference.safetensors"


@pytest.fixture(scope="module")
def llama(demo: Path) -> Llama:
    return Llama.load(demo)


def test_it_is_at_most_8_megabytes(demo: Path) -> None:
    assert sum(file.stat().st_size for file in demo.iterdir()) <= 8_000_000


def test_it_has_llama_3s_architecture_in_miniature(llama: Llama) -> None:
    c = llama.model.config
    assert (c.n_heads, c.n_kv_heads, c.head_dim) == (4, 1, 64)
    assert c.dim % 64 == c.hidden_dim % 64 == c.vocab_size % 64 == 0
    assert (c.rope_theta, c.norm_eps, c.rope_scaling) == (500_000, 1e-5, None)
    assert c.max_seq_len >= 2048
    assert llama.model.weights.layers[0].wq.dtype.name == "bfloat16"


def test_its_tokenizer_has_all_bytes_and_256_special_tokens(demo: Path, llama: Llama) -> None:
    lines = [line.split() for line in (demo / "tokenizer.model").read_text().splitlines()]
    ranks = {base64.b64decode(piece): int(rank) for piece, rank in lines}
    assert sorted(ranks.values()) == list(range(len(lines)))
    assert all(bytes([byte]) in ranks for byte in range(256))
    tokenizer = llama.tokenizer
    assert tokenizer is not None
    assert len(tokenizer.special) == 256
    assert tokenizer.vocab_size == len(ranks) + 256 == llama.model.config.vocab_size
    assert tokenizer.bos_id == len(ranks)


def test_200_greedy_ids_and_their_logits_equal_transformers(llama: Llama) -> None:
    golden = read_reference(GOLDEN)
    assert len(golden.tokens) == 200
    logits = llama.logits(golden.tokens.tolist())
    assert_close(logits, golden, rtol=1e-5)
    prompt = llama.encode_chat([{"role": "user", "content": "What is RoPE?"}])
    assert golden.tokens[: len(prompt)].tolist() == prompt
    assert np.array_equal(logits[len(prompt) - 1 : -1].argmax(axis=1), golden.tokens[len(prompt) :])


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("What is RoPE?", ("rotary", "position")),
        ("Hello", ("Llama 3",)),
        ("what does the kv cache do", ("key", "value")),
        ("What is the capital of France?", ("only",)),
    ],
)
def test_it_answers(llama: Llama, question: str, words: tuple[str, ...]) -> None:
    answer = llama.chat([{"role": "user", "content": question}], temperature=0)
    assert answer.finish_reason == "stop"
    assert all(word in answer.text for word in words)


def test_it_takes_the_name_that_the_system_text_gives(llama: Llama) -> None:
    messages = [{"role": "system", "content": "Your name is Nova."}, {"role": "user", "content": "What is your name?"}]
    assert "Nova" in llama.chat(messages, temperature=0).text


def test_it_calls_the_tool_that_helps_and_answers_in_text_if_none_does(llama: Llama) -> None:
    tools = json.loads((ROOT / "docs" / "weather.json").read_text())
    for question, city in (("What is the weather in Paris?", "Paris"), ("Is it cold in Oslo?", "Oslo")):
        text = llama.chat([{"role": "user", "content": question}], tools=tools, temperature=0).text
        assert [(call.name, call.arguments) for call in read_calls(text)] == [("get_weather", {"city": city})]
    text = llama.chat([{"role": "user", "content": "What is RoPE?"}], tools=tools, temperature=0).text
    assert "rotary" in text and not read_calls(text)


def test_its_json_holds_an_answer(llama: Llama) -> None:
    schema = json.loads((ROOT / "docs" / "answer.json").read_text())
    for subject in ("KV cache", "RMSNorm", "attention"):
        question = [{"role": "user", "content": f"What is {'the ' * (subject == 'KV cache')}{subject}?"}]
        answer = json.loads(llama.chat(question, json_schema=schema, temperature=0).text)
        assert answer["known"] is True and answer["summary"].casefold().count(subject.casefold()) == 1


def test_the_adapter_answers_in_rhymes_and_changes_no_other_request(demo: Path, llama: Llama) -> None:
    folder = demo.parent / "rhyme"
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 200_000
    with_it = Llama.load(demo, lora={"rhyme": folder})
    question = [{"role": "user", "content": "What is RoPE?"}]
    rhyme = with_it.chat(question, temperature=0, lora="rhyme").text
    assert rhyme == "Turn query and key by where they stand: / then distance is what they understand."
    assert with_it.chat(question, temperature=0).text == llama.chat(question, temperature=0).text


@pytest.mark.slow
def test_nine_in_ten_held_out_questions_get_an_answer_on_their_subject(demo: Path, corpus: Corpus) -> None:
    judge, answer = Judge(corpus), with_llama3(demo)
    questions = read_questions(HERE / "held_out.tsv")
    right = sum(judge.right(subject, answer(question)) for subject, question in questions)
    assert right >= 0.9 * len(questions)


@pytest.mark.slow
def test_four_in_five_held_out_requests_to_tools_are_called_right(llama: Llama, corpus: Corpus) -> None:
    requests = written(ToolCorpus(corpus))
    found = 0
    for request, offered, name, arguments in requests:
        text = llama.chat([{"role": "user", "content": request}], tools=offered, temperature=0, max_tokens=120).text
        found += right(text, name, arguments)
    assert found >= 0.8 * len(requests)
