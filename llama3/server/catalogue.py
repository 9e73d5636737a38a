"""What is served, as the service's own catalogue tells it: `models/search` and `models/schema`."""

import math
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from starlette.requests import Request

from llama3.server.answers import MODELS, Json, envelope, rest_error, unknown_model
from llama3.workers_ai import JSON_MODES, NUMBERS, SWITCHES, bad_input

TASK = {"id": "c329a1f9-323d-4e91-b2aa-582dd4188d34", "name": "Text Generation", "description": "Text from a prompt"}
IDS = (
    "1a7b6ad6-9987-4bd3-a329-20ee8de93296",
    str(uuid5(NAMESPACE_URL, MODELS[1])),
)  # theirs, and a made-up one
DEFAULTS = {"max_tokens": 256, "temperature": 0.6}
TEXT = {"type": "string", "minLength": 1}


async def search(request: Request) -> Json:
    """The models whose name holds ?search=, of the task ?task=; all of them are on the first ?page=."""
    asked = {name: request.query_params.get(name, "").casefold() for name in ("search", "task", "page")}
    if asked["task"] not in ("", TASK["name"].casefold(), TASK["id"]) or asked["page"] not in ("", "1"):
        return envelope([])
    return envelope([model(*row) for row in zip(IDS, MODELS, strict=True) if asked["search"] in row[1].casefold()])


async def schema(request: Request) -> Json:
    """The JSON Schemas of ?model='s inputs and output."""
    name = request.query_params.get("model")
    if name is None:
        return rest_error(bad_input("the parameter 'model' is missing: ?model=" + MODELS[0]))
    unknown = unknown_model(name)
    return rest_error(unknown) if unknown else envelope({"input": INPUT, "output": OUTPUT})


def model(id: str, name: str) -> dict[str, Any]:
    about = "Llama 3 8B Instruct, or whatever this server was started with"
    properties = [{"property_id": "context_window", "value": "8192"}, {"property_id": "lora", "value": "true"}]
    return {
        "id": id, "source": 2, "name": name, "description": about, "task": TASK, "tags": [], "properties": properties
    }  # fmt: skip


def number(name: str) -> dict[str, Any]:
    whole, low, high = NUMBERS[name]
    bounds = {"minimum": low, **({"maximum": high} if high < math.inf else {})}
    default = {"default": DEFAULTS[name]} if name in DEFAULTS else {}
    return {"type": "integer" if whole else "number", **bounds, **default}


def tagged(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


SETTINGS: dict[str, Any] = {
    **{name: number(name) for name in NUMBERS},
    **{name: {"type": "boolean", "default": False} for name in SWITCHES},
    "response_format": tagged({"type": {"enum": list(JSON_MODES)}, "json_schema": {"type": "object"}}, "type"),
    "lora": {"type": "string"},
}
TOOL = tagged({"name": TEXT, "description": {"type": "string"}, "parameters": {"type": "object"}}, "name")
MESSAGE = tagged({"role": {"type": "string"}, "content": {"type": "string"}}, "role", "content")
INPUT: dict[str, Any] = {
    "type": "object",
    "oneOf": [
        {"title": "Prompt", "properties": {"prompt": TEXT, **SETTINGS}, "required": ["prompt"]},
        {
            "title": "Messages",
            "properties": {
                "messages": {"type": "array", "items": MESSAGE},
                "tools": {"type": "array", "items": {"anyOf": [TOOL, tagged({"function": TOOL}, "function")]}},
                "functions": {
                    "type": "array",
                    "items": tagged({"name": TEXT, "code": {"type": "string"}}, "name", "code"),
                },
                **SETTINGS,
            },
            "required": ["messages"],
        },
    ],
}
COUNT = {"type": "number", "default": 0}
OUTPUT: dict[str, Any] = {
    "oneOf": [
        tagged(
            {
                "response": {"type": "string"},
                "usage": {
                    "type": "object",
                    "properties": dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), COUNT),
                },
                "tool_calls": {
                    "type": "array",
                    "items": tagged({"name": {"type": "string"}, "arguments": {"type": "object"}}),
                },
            },
            "response",
        ),
        {"type": "string", "format": "binary"},
    ]
}
