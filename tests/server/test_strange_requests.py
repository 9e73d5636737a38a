"""Random schemas, tools and fields on all routes that generate: each gets an answer or a documented error."""

import asyncio
import json
import random
from collections import Counter

import pytest

pytest.importorskip("starlette")  # the extra `server`
pytest.importorskip("llguidance")  # the extra `json`

from llama3 import Llama
from llama3.server.app import make_app
from llama3.server.service import Service
from tests.server.asgi import RUN, Reply, call
from tests.strange_schemas import anything, strange_schema
from tests.tiny import TINY_VOCAB, random_tensors, tiny_config, write_hf, write_tokenizer

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
FIELDS = [
    "model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "stream",
    "stream_options", "stop", "seed", "logprobs", "top_logprobs", "response_format", "tools", "tool_choice", "echo",
    "suffix", "lora", "presence_penalty", "frequency_penalty", "user", "parallel_tool_calls", "best_of", "logit_bias",
]  # fmt: skip
RESPONSES_FIELDS = [
    "model", "input", "instructions", "max_output_tokens", "temperature", "top_p", "stream", "tools", "tool_choice",
    "parallel_tool_calls", "text", "include", "top_logprobs", "store", "background", "previous_response_id",
    "truncation", "metadata", "reasoning", "stop", "seed", "user",
]  # fmt: skip
MESSAGE = {"role": "user", "content": "a"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Llama:
    config = tiny_config(vocab_size=TINY_VOCAB, max_seq_len=512)
    folder = write_hf(tmp_path_factory.mktemp("strange"), config, random_tensors(config))
    return Llama.load(write_tokenizer(folder), slots=4)


def statuses(llama: Llama, requests) -> Counter:
    """Send the requests and count the statuses. Fails, naming the request, for a response that is not documented."""
    seen: Counter = Counter()

    async def run():
        service = Service(lambda: llama, 4, 8)
        service.llama = llama
        app = make_app(service)
        for path, inputs in requests:
            sent = json.dumps(inputs)
            reply = await asyncio.wait_for(call(app, path, sent.encode()), 60)
            assert is_documented(reply), f"{path} {sent} -> {reply.status} {reply.body[:300]!r}"
            seen[reply.status] += 1
        assert service.in_flight == 0

    asyncio.run(run())
    return seen


def is_documented(reply: Reply) -> bool:
    """3043 and 500 do not count: no model step fails in these tests, so they would be errors of the server."""
    if reply.body.startswith(b"event: "):
        last = json.loads(reply.body.decode().split("data: ")[-1])
        return reply.status == 200 and last["type"] in ("response.completed", "response.incomplete")
    if reply.headers["content-type"] == "text/event-stream":
        errors = [error["code"] for event in reply.events() for error in event.get("errors", ())]
        return reply.status == 200 and set(errors) <= {5024}
    found = reply.json()
    if reply.status == 200 and found.get("success"):
        answer = found["result"]
        return ("response" in answer or "tool_calls" in answer) and answer["usage"]["completion_tokens"] <= 4
    if found.get("object") == "response":
        return found["status"] in ("completed", "incomplete") and found["usage"]["output_tokens"] <= 4
    if reply.status == 200:
        ends = {choice["finish_reason"] for choice in found["choices"]}
        return found["object"] in ("chat.completion", "text_completion") and ends <= {"stop", "length", "tool_calls"}
    return reply.status in (400, 413) and found["errors"][0]["code"] in (5006, 5007, 5021, 5024)


def test_a_random_schema_is_enforced_or_refused_on_every_route(llama):
    dice = random.Random(1)

    def requests():
        for _ in range(700):
            schema = strange_schema(dice)
            inputs = {"messages": [MESSAGE], "max_tokens": 4, "stream": dice.random() < 0.5}
            form = {"response_format": {"type": "json_schema", "json_schema": schema}}
            tool = {"name": "f", "description": "", "parameters": schema}
            offered = {"tools": [dice.choice([tool, {"type": "function", "function": tool}])]}
            if dice.random() < 0.5:
                yield RUN, {**inputs, **dice.choice([form, offered])}
            else:
                yield CHAT, {**inputs, **dice.choice([form, {**offered, "tool_choice": "required"}])}

    seen = statuses(llama, requests())
    assert seen[200] > 50 and seen[400] > 200


def test_random_fields_are_accepted_or_refused_on_openais_routes(llama):
    dice = random.Random(2)

    def requests():
        for i in range(4000):
            path, inputs = (CHAT, {"messages": [MESSAGE]}) if i % 3 else (COMPLETIONS, {"prompt": "a"})
            inputs["max_tokens"] = 2
            for field in dice.choices(FIELDS, k=dice.choice([1, 1, 2])):
                inputs[field] = strange_field(dice, field)
            if isinstance(limit := inputs.get("max_tokens"), int) and not 0 <= limit <= 4:
                inputs["max_tokens"] = 4
            yield path, inputs

    seen = statuses(llama, requests())
    assert seen[200] > 500 and seen[400] > 1000


def test_random_fields_are_accepted_or_refused_in_responses(llama):
    dice = random.Random(3)

    def requests():
        for _ in range(2000):
            inputs = {"input": "a", "max_output_tokens": 2}
            for field in dice.choices(RESPONSES_FIELDS, k=dice.choice([1, 1, 2])):
                inputs[field] = strange_field(dice, field)
            limit = inputs["max_output_tokens"]
            if limit is None or (isinstance(limit, int) and not 0 <= limit <= 4):
                inputs["max_output_tokens"] = 4
            yield RESPONSES, inputs

    seen = statuses(llama, requests())
    assert seen[200] > 200 and seen[400] > 500


def strange_item(dice):
    kinds = ["message", "function_call", "function_call_output", "reasoning", 5]
    fields = ["type", "role", "content", "name", "arguments", "output", "call_id"]
    item = dice.choice([{}, MESSAGE, {"type": dice.choice(kinds), "name": "f", "arguments": "{}", "output": "a"}])
    return {**item, **({dice.choice(fields): anything(dice, 2)} if dice.random() < 0.5 else {})}


def strange_field(dice, field):
    if dice.random() < 0.5:
        if field == "input":
            return [strange_item(dice) for _ in range(dice.randint(0, 3))]
        if field == "text":
            return {"format": {"type": dice.choice(["text", "json_object", "json_schema", 5, []])}}
        if field == "include":
            return ["message.output_text.logprobs", anything(dice, 1)]
    if dice.random() < 0.5:
        if field == "messages":
            return [{dice.choice(["role", "content", "tool_calls", "name"]): anything(dice, 2), **MESSAGE}]
        if field == "tool_choice":
            return dice.choice(["auto", "none", "required", {"type": "function", "function": {"name": "f"}}])
        if field == "response_format":
            return {"type": dice.choice(["text", "json_object", "json_schema", 5, []])}
        if field in ("logprobs", "echo", "stream"):
            return dice.choice([True, False, 1, 3])
    return anything(dice, 2)
