"""A constrained text that ends is JSON that its schema accepts, whatever the model's weights.

The model has random weights, and the oracle is the validator jsonschema_rs.
"""

import json
import sys

import jsonschema_rs
import numpy as np
import pytest

from llama3 import Llama
from llama3.constraint import Constraint, schema_grammar, tools_grammar
from llama3.errors import RequestError
from llama3.json_text import read_json
from llama3.tools import read_calls
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
    grammar = schema_grammar(schema)
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


@pytest.mark.parametrize("every", [12, pytest.param(1, marks=pytest.mark.slow)])
def test_three_hundred_schemas_and_tools_of_a_random_model(llama, capsys, every):
    """Nine of ten answers end within 2,000 tokens, and these are all valid. The others say that they were cut short.

    Without the mark `slow`, each twelfth of the three hundred.
    """
    cases = list(schemas_and_tools())
    assert len(cases) >= 290
    cases = cases[::every]
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
        ({"name": "x", "schema": {"type": "null"}}, "has the keys 'name', 'schema', and no keyword"),
        ({"city": {"type": "string"}}, "has the keys 'city', and no keyword"),
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
    with pytest.raises(RequestError, match="JSON schema"):
        grammar = tools_grammar([{"name": "f", "parameters": schema}])
        Constraint(llama.tokenizer, grammar, llama.checkpoint.stop_ids, llama.config.vocab_size)


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
