"""A constrained text that ends is JSON that its schema accepts, whatever the model's weights.

The model has random weights, and the oracle is the validator jsonschema_rs.
"""

import json
import random
import sys

import hypothesis
import jsonschema_rs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama3 import Llama
from llama3.constraint import Constraint, schema_grammar, tools_grammar
from llama3.errors import GrammarError, RequestError
from llama3.json_text import read_json
from llama3.tools import read_calls
from tests.strange_schemas import LIKE_REFERENCES, schema_with_references
from tests.tiny import TINY_VOCAB, random_tensors, tiny_config, write_hf, write_tokenizer

PRIMITIVES = [
    {"type": "boolean"},
    {"type": "integer", "minimum": -3, "maximum": 99},
    {"type": "string", "maxLength": 8},
    {"enum": ["a", 1, None, True]},
    {"const": "x y"},
    {"type": "string", "pattern": "^[a-c]{2,4}$"},
    {"type": "string", "format": "date"},
    {"type": "null"},
    {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
    {"anyOf": [{"type": "boolean"}, {"const": "no"}]},
]


def closed(**properties):
    """The schema of an object with exactly these properties."""
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


SCHEMAS = [
    *PRIMITIVES,
    *({"type": "array", "items": p, "minItems": 1, "maxItems": 3} for p in PRIMITIVES),
    *(closed(a=p, b=closed(c=q)) for p, q in zip(PRIMITIVES, reversed(PRIMITIVES))),
    {"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": PRIMITIVES[1]},
     "required": ["a"], "additionalProperties": False},
    {"allOf": [{"type": "integer", "minimum": 0}, {"maximum": 50}]},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "items": False, "minItems": 2},
]  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Llama:
    config = tiny_config(vocab_size=TINY_VOCAB, max_seq_len=2100)
    folder = write_hf(tmp_path_factory.mktemp("talker"), config, random_tensors(config))
    return Llama.load(write_tokenizer(folder))


def constraint(llama, schema):
    return constraint_of(llama, schema_grammar(schema))


def constraint_of(llama, grammar):
    return Constraint(llama.tokenizer, grammar, llama.checkpoint.stop_ids, llama.config.vocab_size)


@pytest.mark.parametrize("i", range(len(SCHEMAS)))
def test_what_a_random_model_says_is_valid(llama, i):
    for seed in range(4):
        answer = llama.generate("x", json_schema=SCHEMAS[i], max_tokens=200, temperature=1.5, seed=seed)
        assert answer.finish_reason == "stop", answer.text
        jsonschema_rs.validator_for(SCHEMAS[i]).validate(read_json(answer.text))


def schemas_and_tools():
    """Each kind of value alone, in lists, in objects, as one of two choices, and as the argument of a tool."""
    yield from SCHEMAS
    for i, p in enumerate(PRIMITIVES):
        for q in PRIMITIVES[i:]:
            yield {"anyOf": [p, closed(x=q)]}
            yield {"type": "array", "prefixItems": [p, q], "items": False, "minItems": 2}
            yield {"type": "object", "properties": {"p": p, "q": q}, "additionalProperties": False}
            yield {"type": "object", "properties": {"p": p}, "required": ["p"], "additionalProperties": q}
    for p in PRIMITIVES:
        yield {"type": "object", "properties": {"any": {}, "p": p}, "required": ["any", "p"]}
        yield {"type": "array", "items": {"type": "array", "items": p}}
        yield [{"name": "one", "parameters": closed(p=p)}, {"name": "two", "parameters": closed(p={"type": "string"})}]
        yield [{"name": "three", "parameters": {"type": "object", "properties": {"p": p}}}]


def test_three_hundred_schemas_and_tools_of_a_random_model(llama, capsys):
    """Nine of ten answers end within 2,000 tokens, and these are all valid. The others say that they were cut short."""
    cases = list(schemas_and_tools())
    assert len(cases) >= 290
    finished = 0
    for i, case in enumerate(cases):
        tools = isinstance(case, list)
        grammar = tools_grammar(case, must_call=True) if tools else schema_grammar(case)
        answer = llama.generate([1], grammar=grammar, max_tokens=2000, seed=i, temperature=1)
        if answer.finish_reason != "stop":
            assert answer.finish_reason == "length"
            continue
        try:
            value, calls = (None, read_calls(answer.text)) if tools else (read_json(answer.text), [])
        except ValueError as error:  # the grammar of numbers has no upper bound: it accepts 1e999
            assert "too large for a number" in str(error)
            continue
        finished += 1
        if not tools:
            jsonschema_rs.validator_for(case).validate(value)
        for call in calls:
            (tool,) = (tool for tool in case if tool["name"] == call.name)
            jsonschema_rs.validator_for(tool["parameters"]).validate(call.arguments)
    with capsys.disabled():
        print(f" {finished} of {len(cases)} ended", end=" ")
    assert finished >= 0.9 * len(cases)


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


def test_every_token_that_is_allowed_can_be_taken_and_a_valid_text_passes(llama):
    schema, value = (
        closed(a={"type": "string"}, b={"type": "array", "items": {"type": "integer"}}),
        {"a": "é \\n", "b": [1, -20]},
    )
    ids = llama.tokenizer.encode(json.dumps(value, separators=(",", ":"), ensure_ascii=False))
    for n in range(len(ids) + 1):
        allowed = constraint(llama, schema).allowed(ids[:n])
        assert allowed.any()
        if n < len(ids):
            for token in np.flatnonzero(allowed)[::29]:
                constraint(llama, schema).allowed([*ids[:n], int(token)])
    stops = sorted(llama.checkpoint.stop_ids)
    assert np.flatnonzero(allowed).tolist() == [stop for stop in stops if stop < llama.tokenizer.vocab_size]


@pytest.mark.parametrize("i", range(len(SCHEMAS)))
def test_forced_tokens_need_no_step_and_change_nothing(llama, monkeypatch, i):
    def run():
        steps = []
        monkeypatch.setattr(
            llama.model, "step", lambda *args: steps.append(1) or type(llama.model).step(llama.model, *args)
        )
        return llama.generate("x", json_schema=SCHEMAS[i], max_tokens=80, temperature=1.5, seed=i), len(steps)

    (found, few), forced = run(), Constraint.forced
    monkeypatch.setattr(Constraint, "forced", lambda self, tokens: [])
    plain, many = run()
    assert found.tokens == plain.tokens and found.finish_reason == plain.finish_reason and few <= many
    if "properties" in SCHEMAS[i]:
        assert few < many, "the names of properties are forced"
    assert forced is not Constraint.forced


def test_a_control_token_is_never_allowed_in_the_middle(llama):
    one = constraint(llama, closed(a={"type": "string"}))
    inside = llama.tokenizer.encode('{"a":"<|eot_id|>')
    for n in range(len(inside) + 1):
        allowed = np.flatnonzero(one.allowed(inside[:n]))
        assert not set(allowed.tolist()) & set(llama.tokenizer.special.values())


def test_a_constrained_request_gives_the_same_answer_beside_others(llama, tmp_path):
    many = Llama(llama.checkpoint, slots=3)
    schema = closed(a={"type": "boolean"}, b={"type": "integer", "minimum": 0, "maximum": 999})
    streams = [
        many.stream("one", json_schema=schema, seed=1, max_tokens=60),
        many.stream("two", seed=2, max_tokens=20),
        many.stream("three", json_schema=schema, seed=3, max_tokens=60),
    ]
    found = [stream.completion().text for stream in streams]
    assert found[0] == llama.generate("one", json_schema=schema, seed=1, max_tokens=60).text
    assert found[1] == llama.generate("two", seed=2, max_tokens=20).text
    assert found[2] == llama.generate("three", json_schema=schema, seed=3, max_tokens=60).text


def nested(levels):
    schema = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ([], "is list; expected an object"),
        ({"type": "nothing"}, "cannot be enforced"),
        ({"not": {}}, "cannot be enforced"),
        ({"$ref": "file:///etc/passwd"}, "cannot be enforced"),
        ({"$ref": "http://localhost:1/x"}, "cannot be enforced"),
        ({"enum": ["x" * 100] * 1000}, "bytes; expected at most 65,536"),
        (nested(500), "more than 64 levels deep"),
        ({"const": float("nan")}, "is not JSON"),
        ({"const": b"x"}, "is not JSON"),
        ({"$ref": "#"}, "cannot be enforced"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "cannot be enforced"),
        ({"const": -(2**63)}, "expected none below -4.6e+18"),
        ({"enum": [{"a": 1 - 2**63}]}, "expected none below -4.6e+18"),
        ({"enum": ["x", -1e308], "type": "integer"}, "expected none below -4.6e+18"),
        ({"const": 10**400}, "too large for a float64"),
        ({"multipleOf": 2**31}, "2.1e+09 remainders; expected at most 50,000"),
        ({"properties": {"a": {"allOf": [{"multipleOf": 99.73}, {"multipleOf": 9967}]}}}, "remainders"),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused(llama, schema, says):
    with pytest.raises(RequestError, match="JSON schema") as caught:
        constraint(llama, schema)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).count("JSON schema") == 1


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "maxLength": 10**9},
        {"type": "array", "minItems": 10**9},
        {"enum": [f"{i:08}" for i in range(5_000)]},
        {"type": "string", "pattern": "^(a+)+$"},
        {"const": -(2**61)},
        {"enum": [{"a": 1 - 2**62}, 2**64, 10**400]},
        {"type": "integer", "minimum": -(2**62), "maximum": 2**64 - 1},
        {"multipleOf": 49_999},
        {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(1_000)}},
        {"allOf": [{"anyOf": [{"type": "string"}, {"type": "integer"}]}] * 12},
        {"x-guidance": {"lenient": True}, "type": "integer"},
    ],
)
def test_a_hostile_schema_ends_in_an_answer_or_in_an_error(llama, schema):
    try:
        text = llama.generate("x", json_schema=schema, max_tokens=20, seed=1).text
    except ValueError as error:
        assert "JSON schema" in str(error)
    else:
        assert isinstance(text, str)
    assert llama.generate("x", json_schema={"type": "boolean"}, seed=1).text in ("true", "false")


@pytest.mark.parametrize(("number", "text"), [(2**53, "9007199254740992"), (2**61 + 1, "2305843009213694000")])
def test_a_number_beyond_53_bits_is_written_as_javascript_writes_it(llama, number, text):
    assert llama.generate("x", json_schema={"const": number}, seed=1).text == text


def test_a_schema_cannot_set_the_engines_options(llama):
    with pytest.raises(RequestError, match="cannot be enforced"):
        constraint(llama, {"x-guidance": {"lenient": True}, "type": "object", "not": {}})


def test_without_the_extra_it_says_what_to_install(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RequestError, match=r"JSON mode needs llguidance: pip install 'llama3\[json\]'"):
        llama.generate("x", json_schema={})
