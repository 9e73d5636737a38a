"""Which inputs the Workers AI contract accepts: random ones against the model page's schema, and each rule."""

import copy
import itertools
import json
import math
import random

import jsonschema_rs
import pytest

from llama3.errors import ContractError
from llama3.workers_ai import validate
from llama3.workers_ai_input import NUMBERS

ANYTHING = [None, True, False, 0, 1, -1, 3, 0.5, 1.0, 7.25, 51, 10**10, 1e30, "", "x", "true", [], [1], {}, {"a": 1}]
ANYTHING += [[{"role": "user", "content": "hi"}], {"type": "json_object"}]
MESSAGE = {"role": "user", "content": "What is RoPE?"}


def error_of(inputs) -> ContractError:
    with pytest.raises(ContractError) as caught:
        validate(inputs)
    return caught.value


def any_inputs(dice: random.Random) -> dict:
    """Valid inputs, of which a few values are then replaced by random ones."""
    inputs = (
        {"prompt": "hi"} if dice.random() < 0.5 else {"messages": [dict(MESSAGE) for _ in range(dice.randint(1, 3))]}
    )
    for name, (whole, low, high) in NUMBERS.items():
        if dice.random() < 0.3:
            high = min(high, 4)
            inputs[name] = dice.choice([math.ceil(low), high, dice.randint(math.ceil(low), high)])
            inputs[name] = inputs[name] if whole else dice.choice([inputs[name], low, dice.uniform(low, high)])
    for name in ("raw", "stream"):
        if dice.random() < 0.2:
            inputs[name] = dice.random() < 0.5
    for _ in range(dice.choice([0, 1, 1, 2])):
        name = dice.choice([*NUMBERS, "raw", "stream", "prompt", "messages", "response_format", "unknown"])
        if name == "messages" and "messages" in inputs and dice.random() < 0.7 and isinstance(inputs["messages"], list):
            if inputs["messages"] and isinstance(inputs["messages"][0], dict):
                inputs["messages"][0][dice.choice(["role", "content", "name"])] = dice.choice(ANYTHING)
        else:
            inputs[name] = dice.choice(ANYTHING)
    return inputs


def refused_on_purpose(inputs) -> bool:
    """Whether the contract refuses these inputs on purpose, even if the page's schema accepts them."""
    form, messages = inputs.get("response_format"), inputs.get("messages")
    return (
        messages == []
        or (isinstance(messages, list) and any(m.get("role") == "" for m in messages if isinstance(m, dict)))
        or ("max_tokens" in inputs and not inputs["max_tokens"] >= 1)
        or (isinstance(form, dict) and "type" not in form)
    )


def test_twenty_thousand_inputs_pass_or_fail_as_the_pages_schema_says(page_schemas):
    validator, dice = jsonschema_rs.Draft7Validator(json.loads(page_schemas[0])), random.Random(0)
    refused = 0
    for _ in range(20_000):
        inputs = any_inputs(dice)
        valid = validator.is_valid(inputs)
        try:
            validate(inputs)
        except ContractError as error:
            assert not valid or refused_on_purpose(inputs), (inputs, str(error))
            assert error.code == 5006 and error.status == 400
            refused += 1
        else:
            assert valid, inputs
    assert 5_000 < refused < 15_000


TOOL = {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}
FULL = {  # valid inputs that use every field with a nested structure
    "messages": [MESSAGE, {"role": "assistant", "content": "It is ..."}, dict(MESSAGE)],
    "tools": [TOOL, {"type": "function", "function": {**TOOL, "name": "g"}}],
    "functions": [{"name": "h", "code": "return 1"}],
    "response_format": {"type": "json_schema", "json_schema": {"type": "object"}},
}
PLACES = {  # keys that lead to a value -> how an error message names that place
    **{(name,): f"'/{name}'" for name in (*NUMBERS, "raw", "stream")},
    ("messages",): "'/messages'",
    **{("messages", i): f"'/messages/{i}'" for i in range(3)},
    **{("messages", i, name): f"'/messages/{i}/{name}'" for i in range(3) for name in ("role", "content")},
    ("tools", 0): "'/tools/0'",
    ("tools", 0, "name"): "'/tools': tools[0]: name",
    ("tools", 0, "parameters"): "'/tools': tools[0]",
    ("tools", 1, "function"): "'/tools': tools[1]",
    ("tools", 1, "function", "name"): "'/tools': tools[1]: name",
    ("functions", 0): "'/functions/0'",
    ("functions", 0, "name"): "'/functions/0/name'",
    ("functions", 0, "code"): "'/functions/0/code'",
    ("response_format",): "'/response_format'",
    ("response_format", "type"): "'/response_format/type'",
    ("response_format", "json_schema"): "'/response_format/json_schema'",
}
WRONG = [math.nan, math.inf, -math.inf, -1e9, 1e12, 10**400, b"x", {1}, object(), 7.5, True, [3], [[]]]


def test_the_error_names_the_place_for_twenty_thousand_inputs_wrong_in_one_place():
    dice, found, places = random.Random(1), 0, list(PLACES)
    while found < 20_000:
        place, value = dice.choice(places), dice.choice(WRONG)
        if place[0] in ("raw", "stream") and value is True:
            continue
        if place == ("max_tokens",) and value in (1e12, 10**400):
            continue  # an allowed value; only the context window limits it
        if place[0] in NUMBERS and value == 7.5 and not NUMBERS[place[0]][0] and value <= NUMBERS[place[0]][2]:
            continue
        inputs = copy.deepcopy(FULL)
        holder = inputs
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = value
        error = error_of(inputs)
        assert error.code == 5006 and error.status == 400, (place, value)
        assert PLACES[place] in str(error) or f"{PLACES[place][:-1]}/" in str(error), (place, value, str(error))
        assert str(error).startswith("AiError: Bad input: Error: ") and "\n" not in str(error)
        found += 1


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "oneOf at '/' not met, 0 matches: required properties at '/' are 'prompt'"),
        ({"prompt": "a", "messages": [MESSAGE]}, "2 matches"),
        ({"prompt": 7, "messages": 7}, "0 matches"),
        ({"prompt": ""}, "'/prompt' must not be shorter than 1 character"),
        ({"messages": []}, "'/messages' must not be empty"),
        ({"messages": [MESSAGE] * 1025}, "'/messages' must not have more than 1024 items"),
        ({"messages": [{"role": "user"}]}, "required properties at '/messages/0' are 'role,content'"),
        ({"messages": [MESSAGE, {"role": "", "content": ""}]}, "'/messages/1/role' must not be shorter"),
        (
            {"messages": [{"role": "a", "content": []}]},
            "Type mismatch of '/messages/0/content', 'array' not in 'string'",
        ),
        ({"prompt": "a", "temperature": 5.1}, "'/temperature' must be <= 5"),
        ({"prompt": "a", "max_tokens": 0}, "'/max_tokens' must be >= 1"),
        ({"prompt": "a", "max_tokens": None}, "Type mismatch of '/max_tokens', 'null' not in 'integer'"),
        ({"prompt": "a", "top_k": True}, "Type mismatch of '/top_k', 'boolean' not in 'integer'"),
        ({"prompt": "a", "seed": 1.5}, "Type mismatch of '/seed', 'number' not in 'integer'"),
        ({"prompt": "a", "raw": "true"}, "Type mismatch of '/raw', 'string' not in 'boolean'"),
        ({"prompt": "a", "response_format": {}}, "required properties at '/response_format' are 'type'"),
        ({"prompt": "a", "response_format": {"type": "text"}}, "'/response_format/type' must be one of"),
        ({"messages": [{"role": "user", "content": None}]}, "Type mismatch of '/messages/0/content', 'null'"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": []}]}, "'/messages/0/content', 'null'"),
        ({"messages": [{"role": "user", "tool_calls": [{"name": "f"}]}]}, "at '/messages/0' are 'role,content'"),
        ({"prompt": "a", "lora": 7}, "Type mismatch of '/lora', 'integer' not in 'string'"),
        ({"messages": [MESSAGE], "tools": 7}, "Type mismatch of '/tools', 'integer' not in 'array'"),
        ({"messages": [MESSAGE], "tools": [1]}, "Type mismatch of '/tools/0', 'integer' not in 'object'"),
        ({"messages": [MESSAGE], "tools": [{"description": "x"}]}, "'/tools': tools[0]: name is None"),
        ({"messages": [MESSAGE], "tools": [{"name": "x"}] * 2}, "two tools named 'x'"),
        ({"messages": [MESSAGE], "tools": [{"name": f"t{i}"} for i in range(129)]}, "at most 128"),
        ({"messages": [MESSAGE], "functions": [{"name": "f"}]}, "at '/functions/0' are 'name,code'"),
        ([], "Type mismatch of '/', 'array' not in 'object'"),
        (None, "'null' not in 'object'"),
    ],
)
def test_each_rule_has_its_error_message(inputs, message):
    assert message in str(error_of(inputs))


def test_unknown_keys_are_ignored():
    assert validate({"prompt": "a", "stop": None, "tool_choice": "auto", "options": {}}) == {"prompt": "a"}
    assert validate({"messages": [{**MESSAGE, "name": 7}], "tools": []}) == {"messages": [MESSAGE], "tools": []}


def test_a_whole_number_may_be_a_float():
    parameters = validate({"prompt": "a", "max_tokens": 10.0, "temperature": 1, "repetition_penalty": 0})
    assert parameters["max_tokens"] == 10 and isinstance(parameters["max_tokens"], int)
    assert parameters["repetition_penalty"] == 0


SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["RoPE", "GQA"]}, "yes": {"type": "boolean"}},
    "required": ["name", "yes"],
    "additionalProperties": False,
}


def envelopes(schema):
    """Every response_format that asks for this schema."""
    envelope = {"name": "answer", "description": "An answer", "strict": True, "schema": schema}
    inner = [schema]
    for keys in itertools.chain.from_iterable(
        itertools.combinations(["name", "description", "strict"], n) for n in range(4)
    ):
        inner.append({key: envelope[key] for key in (*keys, "schema")})
    for mode, key in itertools.product(("json_schema", "json_object"), ("json_schema", "schema")):
        for value in inner:
            yield {"type": mode, key: value}
    yield {"type": "json_schema", **envelope}  # as OpenAI's Responses have it


def test_the_schema_is_found_in_every_envelope():
    schemas = [SCHEMA, {}, {"type": "array"}, {"$ref": "#/$defs/schema", "$defs": {"schema": SCHEMA}}, {"title": "T"}]
    schemas += [{"properties": {"name": {}, "schema": {}, "strict": {}}}]
    for schema in schemas:
        forms = list(envelopes(schema))
        assert len(forms) == 37
        for form in forms:
            assert validate({"prompt": "?", "response_format": form})["response_format"] == schema, form


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_object"},
        {"type": "json_schema"},
        {"type": "json_schema", "name": "answer", "strict": True},
        {"type": "json_schema", "json_schema": {"name": "answer"}},
        {"type": "json_schema", "json_schema": {"name": "answer", "description": "An answer", "strict": False}},
    ],
)
def test_json_without_a_schema_is_any_object(form):
    assert validate({"prompt": "?", "response_format": form})["response_format"] == {"type": "object"}


@pytest.mark.parametrize("mode", ["json_schema", "json_object"])
@pytest.mark.parametrize("key", ["json_schema", "schema"])
def test_a_response_format_in_which_the_schema_would_be_lost_is_refused(mode, key):
    """A schema under any other key, and one inside two envelopes, is not found: such a request has no answer."""
    keys = ["Schema", "jsonSchema", "parameters", "definition", "value", "json_schema", "x"]
    for name in keys:
        for form in (
            {"type": mode, key: {name: SCHEMA}},
            {"type": mode, key: {"name": "answer", "strict": True, name: SCHEMA}},
            {"type": mode, key: {"schema": {name: SCHEMA}}},
            {"type": mode, key: {"title": "T", name: SCHEMA}},
            {"type": mode, key: {"schema": SCHEMA, name: SCHEMA}},
            {"type": mode, key: SCHEMA, "x" + name: SCHEMA},
        ):
            error = error_of({"prompt": "?", "response_format": form})
            assert error.code == 5006 and "'/response_format" in str(error), form
    for value in (SCHEMA, {"schema": SCHEMA}):
        twice = {"prompt": "?", "response_format": {"type": mode, key: {"schema": {"schema": value}}}}
        assert "is no JSON Schema" in str(error_of(twice))
    both = {"type": mode, "json_schema": SCHEMA, "schema": SCHEMA}
    assert "expected one of them" in str(error_of({"prompt": "?", "response_format": both}))
    for value in (None, True, "text", [SCHEMA]):
        assert "Type mismatch" in str(error_of({"prompt": "?", "response_format": {"type": mode, key: value}}))
