"""The model catalogue: its search, and that its published schemas accept what the server accepts."""

import asyncio
import json
import random

import jsonschema_rs
import pytest

pytest.importorskip("starlette")  # the extra `server`

from llama3.errors import ContractError
from llama3.model_names import MODELS
from llama3.server.app import make_app
from llama3.server.models_api import INPUT, OUTPUT
from llama3.server.service import Service
from llama3.workers_ai import validate
from tests.schema_values import values_of
from tests.server.asgi import Reply, call
from tests.test_workers_ai_input import any_inputs, refused_on_purpose

BASE = "/client/v4/accounts/me/ai/models"


def get(path: str, query: str = "") -> Reply:
    app = make_app(Service(lambda: pytest.fail("the catalogue must not load the model"), 4, 8))
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
    reply = get(base + "/search", query)
    assert reply.status == 200 and reply.json()["success"] is True
    assert [model["name"] for model in reply.json()["result"]] == names
    assert all(model["task"]["name"] == "Text Generation" and model["source"] == 2 for model in reply.json()["result"])


def test_the_schemas_are_returned_for_known_models_only():
    for name in MODELS:
        assert get(BASE + "/schema", f"model={name}").json()["result"] == {"input": INPUT, "output": OUTPUT}
    missing, unknown = get(BASE + "/schema"), get(BASE + "/schema", "model=x")
    assert (missing.status, missing.json()["errors"][0]["code"]) == (400, 5006)
    assert (unknown.status, unknown.json()["errors"][0]["code"]) == (400, 5007)


def test_the_input_schema_accepts_what_the_server_accepts():
    validator, dice, accepted = jsonschema_rs.Draft7Validator(INPUT), random.Random(3), 0
    for _ in range(5_000):
        inputs = any_inputs(dice)
        try:
            validate(inputs)
        except ContractError as error:
            assert not validator.is_valid(inputs) or refused_on_purpose(inputs), (json.dumps(inputs), str(error))
        else:
            assert validator.is_valid(inputs), json.dumps(inputs)
            accepted += 1
    assert 1_000 < accepted < 4_000


def test_the_published_schemas_agree_with_those_of_the_page(page_schemas):
    """They agree on results, and inputs that our schema accepts are accepted by the page's, too."""
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
    page_accepts = jsonschema_rs.Draft7Validator(json.loads(page_schemas[0])).is_valid

    @settings(max_examples=200, deadline=None)
    @given(values_of(INPUT))
    def check_inputs(inputs):
        if not inputs.get("tools"):  # here our schema is more lenient, on purpose
            assert page_accepts(inputs), inputs

    check_inputs()
