"""What the server says of its models, and that its schemas say of inputs what the server does with them."""

import asyncio
import json
import random

import jsonschema_rs
import pytest

pytest.importorskip("starlette")  # the extra `server`

from llama3.errors import ContractError
from llama3.server.app import MODELS, Service, make_app
from llama3.server.catalogue import INPUT, OUTPUT
from llama3.workers_ai import validate
from tests.schema_values import values_of
from tests.server.calling import Reply, call
from tests.test_workers_ai import any_inputs, decided_otherwise

BASE = "/client/v4/accounts/me/ai/models"


def got(path: str, query: str = "") -> Reply:
    app = make_app(Service(lambda: pytest.fail("no model is needed"), 4, 8))
    return asyncio.run(call(app, path, b"", "GET", query=query))


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", [*MODELS]),
        ("search=HF/meta", [MODELS[0]]),
        ("search=mistral", []),
        ("task=Text%20Generation&page=1&per_page=50", [*MODELS]),
        ("task=Translation", []),
        ("page=2", []),
    ],
)
@pytest.mark.parametrize("base", [BASE, "/ai-api/models"])
def test_models_are_found_by_name_and_task_on_one_page(base, query, names):
    reply = got(base + "/search", query)
    assert reply.status == 200 and reply.json()["success"] is True
    assert [model["name"] for model in reply.json()["result"]] == names
    assert all(model["task"]["name"] == "Text Generation" and model["source"] == 2 for model in reply.json()["result"])


def test_the_schemas_are_told_for_models_that_there_are():
    for name in MODELS:
        assert got(BASE + "/schema", f"model={name}").json()["result"] == {"input": INPUT, "output": OUTPUT}
    missing, unknown = got(BASE + "/schema"), got(BASE + "/schema", "model=x")
    assert (missing.status, missing.json()["errors"][0]["code"]) == (400, 5006)
    assert (unknown.status, unknown.json()["errors"][0]["code"]) == (400, 5007)


def test_the_input_schema_lets_pass_what_the_server_lets_pass():
    validator, dice, passed = jsonschema_rs.Draft7Validator(INPUT), random.Random(3), 0
    for _ in range(5_000):
        inputs = any_inputs(dice)
        try:
            validate(inputs)
        except ContractError as error:
            assert not validator.is_valid(inputs) or decided_otherwise(inputs), (json.dumps(inputs), str(error))
        else:
            assert validator.is_valid(inputs), json.dumps(inputs)
            passed += 1
    assert 1_000 < passed < 4_000


def test_the_published_schemas_agree_with_the_pages(page_schemas):
    """On inputs of the page's own schema, and on results."""
    from hypothesis import given, settings

    ours, theirs = (jsonschema_rs.Draft7Validator(schema) for schema in (OUTPUT, json.loads(page_schemas[1])))
    for result in (
        {"response": "a"},
        {"response": 5},
        {},
        {"response": "", "tool_calls": [{}]},
        {"tool_calls": []},
        "x",
    ):
        assert ours.is_valid(result) == theirs.is_valid(result), result
    accepts = jsonschema_rs.Draft7Validator(json.loads(page_schemas[0])).is_valid

    @settings(max_examples=200, deadline=None)
    @given(values_of(INPUT))
    def what_ours_accepts_theirs_does(inputs):
        if not inputs.get("tools"):  # ours is lenient there, as decided
            assert accepts(inputs), inputs

    what_ours_accepts_theirs_does()
