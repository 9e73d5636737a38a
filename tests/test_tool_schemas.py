"""The schema of a tool means in a call what it means alone, and the grammar of calls holds the arguments to it.

The oracle is the validator jsonschema_rs.
"""

import json
import random

import hypothesis
import jsonschema_rs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama3 import Llama
from llama3.constraint import Constraint, schema_grammar, tools_grammar
from llama3.errors import GrammarError
from llama3.json_text import read_json
from llama3.tools import read_calls
from tests.strange_schemas import LIKE_REFERENCES, schema_with_references
from tests.tiny import TINY_VOCAB, random_tensors, tiny_config, write_hf, write_tokenizer


def closed(**properties):
    """The schema of an object with exactly these properties."""
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Llama:
    config = tiny_config(vocab_size=TINY_VOCAB, max_seq_len=2100)
    folder = write_hf(tmp_path_factory.mktemp("talker"), config, random_tensors(config))
    return Llama.load(write_tokenizer(folder))


def constraint_of(llama, grammar):
    return Constraint(llama.tokenizer, grammar, llama.checkpoint.stop_ids, llama.config.vocab_size)


def accepts(constraint: Constraint, tokens: list[int], stop: int) -> bool:
    """Whether the constraint lets this text through, token by token, and then lets it end. Behind a part of the text
    that has no end, as in a schema that requires itself, it lets nothing through.
    """
    try:
        return all(constraint.allowed(tokens[:n])[token] for n, token in enumerate([*tokens, stop]))
    except GrammarError:
        return False


def random_text(llama, constraint, dice, start="", most=120) -> str | None:
    """A text that the constraint lets through: a walk over its masks that likes to end. None if it grew too long, or
    has no end, as a schema that requires itself.
    """
    tokenizer, stops = llama.tokenizer, llama.checkpoint.stop_ids
    ends, tokens = [tokenizer.encode(end)[0] for end in '"}]'], tokenizer.encode(start)
    while len(tokens) < most:
        try:
            allowed = constraint.allowed(tokens)
        except GrammarError:
            return None
        if any(allowed[stop] for stop in stops if stop < len(allowed)):
            return tokenizer.decode(tokens)
        likely = [token for token in ends if allowed[token]] if dice.random() < 0.4 else []
        tokens.append(dice.choice(likely or np.flatnonzero(allowed).tolist()))
    return None


def mutated(value, dice):
    """A JSON value that differs from this one in one place."""
    if isinstance(value, dict) and value and dice.random() < 0.8:
        name = dice.choice([*value])
        if dice.random() < 0.3:
            return {key: inner for key, inner in value.items() if key != name}
        return {**value, name: mutated(value[name], dice)}
    if isinstance(value, list) and value and dice.random() < 0.7:
        return [mutated(value[0], dice), *value[1:]]
    return dice.choice([None, True, 1, 99, "", "abc", {}, [], *LIKE_REFERENCES])


@pytest.mark.parametrize("count", [150, pytest.param(2_000, marks=pytest.mark.slow)])
def test_a_schema_with_references_means_in_a_tool_what_it_means_alone(llama, count):
    """Whatever one of them says is valid JSON for the schema, and the other accepts it too. The same texts with a
    change in one place are accepted by both, or by none.
    """
    stop = min(llama.checkpoint.stop_ids)
    seen = dict.fromkeys(("said", "accepted", "refused", "not an object"), 0)

    def compact(value):
        return llama.tokenizer.encode(json.dumps(value, separators=(",", ":"), ensure_ascii=False))

    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @hypothesis.seed(1)
    @given(st.integers(0, 2**48))
    def check(seed):
        dice = random.Random(seed)
        schema = schema_with_references(dice)
        tool = {"name": "f", "parameters": schema}
        other = {"name": "g", "parameters": schema_with_references(dice)}
        grammars = schema_grammar(schema), tools_grammar(dice.sample([tool, other], 2), must_call=True, parallel=False)
        alone, in_tool = (constraint_of(llama, grammar) for grammar in grammars)
        validator = jsonschema_rs.validator_for(schema)
        texts = [random_text(llama, alone, dice), random_text(llama, in_tool, dice, '{"name":"f","parameters":')]
        try:
            values = [read_json(texts[0])] if texts[0] is not None else []
            values += [read_calls(texts[1])[0].arguments] if texts[1] is not None else []
        except ValueError as error:  # the grammar of numbers has no upper bound: it accepts 1e999
            assert "too large for a number" in str(error)
            return
        for value in values:
            validator.validate(value)
            seen["said"] += 1
        for value in [
            *values,
            *(mutated(value, dice) for value in values),
            *(mutated(value, dice) for value in values),
        ]:
            alone, in_tool = (constraint_of(llama, grammar) for grammar in grammars)
            found = accepts(alone, compact(value), stop)
            called = accepts(in_tool, compact({"name": "f", "parameters": value}), stop)
            assert called == (found and isinstance(value, dict)), (schema, value)
            assert validator.is_valid(value) or not found
            seen["not an object" if not isinstance(value, dict) else "accepted" if found else "refused"] += 1

    check()
    assert min(seen.values()) >= count / 10, seen


def test_tools_may_have_definitions_of_their_own(llama):
    """pydantic writes nested models as $defs. Two tools may use the same name for different definitions."""
    tools = [
        {
            "name": name,
            "parameters": {**closed(p={"$ref": "#/$defs/P"}), "$defs": {"P": closed(q={"$ref": "#/$defs/Q"}), "Q": q}},
        }
        for name, q in (("one", {"type": "boolean"}), ("two", {"const": "x"}))
    ]
    found = set()
    for seed in range(8):
        answer = llama.generate([1], grammar=tools_grammar(tools, must_call=True), max_tokens=300, seed=seed)
        for call in read_calls(answer.text) if answer.finish_reason == "stop" else []:
            (tool,) = (tool for tool in tools if tool["name"] == call.name)
            jsonschema_rs.validator_for(tool["parameters"]).validate(call.arguments)
            found.add(call.name)
    assert found == {"one", "two"}


def test_a_call_holds_the_listed_parameters_and_no_others(llama):
    """A schema with further keywords than the list may accept others, as JSON Schema defines it."""
    listed = {"properties": {"city": {"type": "string"}}, "required": ["city"]}
    for more, passes in (({}, False), ({"additionalProperties": True}, True), ({"patternProperties": {"x": {}}}, True)):
        tool = {"name": "f", "parameters": {"type": "object", **listed, **more}}
        constraint = Constraint(
            llama.tokenizer, tools_grammar([tool], must_call=True), llama.checkpoint.stop_ids, llama.config.vocab_size
        )
        tokens = llama.tokenizer.encode('{"name":"f","parameters":{"city":"Rome"')
        for i in range(len(tokens)):
            assert constraint.allowed(tokens[:i])[tokens[i]]
        allowed = constraint.allowed(tokens)
        assert allowed[llama.tokenizer.encode(",")[0]] == passes and allowed[llama.tokenizer.encode("}")[0]]


@pytest.mark.parametrize(
    ("parameters", "only"),
    [
        ({"type": "object", "properties": {}}, True),
        ({"properties": {}}, True),
        (
            {
                "type": "object",
                "properties": {},
                "required": [],
                "$schema": "http://json-schema.org/draft-07/schema#",
                "$defs": {},
                "definitions": {},
            },
            True,
        ),
        ({"type": "object", "properties": {}, "required": ["x"]}, False),
        ({"type": "object"}, False),
        ({"type": "object", "properties": {}, "additionalProperties": True}, False),
    ],
)
def test_a_tool_without_parameters_is_called_without_arguments(llama, parameters, only):
    grammar = tools_grammar([{"name": "f", "parameters": parameters}], must_call=True)
    tokens = llama.tokenizer.encode('{"name":"f","parameters":{')
    allowed = constraint_of(llama, grammar).allowed(tokens)
    assert allowed[llama.tokenizer.encode("}")[0]] == ("x" not in parameters.get("required", ()))
    assert allowed[llama.tokenizer.encode('"')[0]] == (not only)


@pytest.mark.parametrize("must_call", [True, False])
@pytest.mark.parametrize("parallel", [True, False])
def test_more_than_one_call_only_if_calls_may_be_parallel(llama, must_call, parallel):
    tools = [{"name": name, "parameters": {"properties": {}}} for name in "fg"]
    grammar = tools_grammar(tools, must_call, parallel)
    one, text = '{"name":"f","parameters":{}}', llama.tokenizer.encode("word")
    two = llama.tokenizer.encode(f"{one}; {one.replace('f', 'g', 1)}")
    stop = min(llama.checkpoint.stop_ids)
    assert accepts(constraint_of(llama, grammar), llama.tokenizer.encode(one), stop)
    assert accepts(constraint_of(llama, grammar), two, stop) == parallel
    assert accepts(constraint_of(llama, grammar), text, stop) == (not must_call)


@pytest.mark.parametrize(
    "draft",
    [
        None,
        "http://json-schema.org/draft-04/schema#",
        "http://json-schema.org/draft-06/schema#",
        "http://json-schema.org/draft-07/schema#",
        "https://json-schema.org/draft/2020-12/schema",
    ],
)
@pytest.mark.parametrize(
    "root", [{"$ref": "#/definitions/L"}, {"anyOf": [{"type": "integer"}, {"$ref": "#/definitions/L"}]}]
)
def test_a_list_that_refers_to_itself_can_be_the_argument(llama, draft, root):
    """As zod-to-json-schema writes a schema with a name: the root is nothing but a reference."""
    item = {**closed(value={"type": "integer"}), "properties": {"value": {"type": "integer"}, "next": root}}
    schema = {**root, "definitions": {"L": item}, **({"$schema": draft} if draft else {})}
    grammar = tools_grammar([{"name": "f", "parameters": schema}], must_call=True)
    stop = min(llama.checkpoint.stop_ids)
    for arguments, valid in (
        ('{"value":1,"next":{"value":2,"next":{"value":3}}}', True),
        ('{"value":1,"next":{"next":{"value":3}}}', False),
        ('{"value":1,"next":7}', "anyOf" in root),
        ("7", False),
    ):
        tokens = llama.tokenizer.encode(f'{{"name":"f","parameters":{arguments}}}')
        assert accepts(constraint_of(llama, grammar), tokens, stop) == valid, arguments
