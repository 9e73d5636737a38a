"""Workers AI's model catalogue, for the models served here: the routes `models/search` and `models/schema`."""

import math
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from starlette.requests import Request
from starlette.responses import Response

from llama3.api_format import envelope
from llama3.model_names import MODELS, unknown_model
from llama3.server.responses import JsonResponse, refusal
from llama3.workers_ai_input import BOOLEANS, JSON_MODES, NUMBERS, bad_input

TASK = {"id": "c329a1f9-323d-4e91-b2aa-582dd4188d34", "name": "Text Generation", "description": "Text from a prompt"}
MODEL_IDS = (
    "1a7b6ad6-9987-4bd3-a329-20ee8de93296",  # Workers AI's own id
    str(uuid5(NAMESPACE_URL, MODELS[1])),  # made from the name, since Workers AI's id is not known
)
DEFAULTS = {"max_tokens": 256, "temperature": 0.6}


async def search(request: Request) -> Response:
    """The models whose name contains ?search= and whose task is ?task=. There is only one ?page=."""
    text, task, page = (request.query_params.get(name, "").casefold() for name in ("search", "task", "page"))
    if task not in ("", TASK["name"].casefold(), TASK["id"]) or page not in ("", "1"):
        return JsonResponse(envelope([]))
    found = [(id, name) for id, name in zip(MODEL_IDS, MODELS, strict=True) if text in name.casefold()]
    return JsonResponse(envelope([model_object(id, name) for id, name in found]))


async def schema(request: Request) -> Response:
    """The JSON Schemas of the input and the output of the model ?model=."""
    name = request.query_params.get("model")
    if name is None:
        return refusal(bad_input("the parameter 'model' is missing: ?model=" + MODELS[0]))
    unknown = unknown_model(name)
    return refusal(unknown) if unknown else JsonResponse(envelope({"input": INPUT, "output": OUTPUT}))


def model_object(id: str, name: str) -> dict[str, Any]:
    return {
        "id": id,
        "source": 2,
        "name": name,
        "description": "Llama 3 8B Instruct, or whatever this server was started with",
        "task": TASK,
        "tags": [],
        "properties": [{"property_id": "context_window", "value": "8192"}, {"property_id": "lora", "value": "true"}],
    }


def number_schema(name: str) -> dict[str, Any]:
    whole, low, high = NUMBERS[name]
    bounds = {"minimum": low, **({"maximum": high} if high < math.inf else {})}
    default = {"default": DEFAULTS[name]} if name in DEFAULTS else {}
    return {"type": "integer" if whole else "number", **bounds, **default}


def array_schema(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def object_schema(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


TEXT = {"type": "string"}
NON_EMPTY_TEXT = {"type": "string", "minLength": 1}
PARAMETERS: dict[str, Any] = {
    **{name: number_schema(name) for name in NUMBERS},
    **{name: {"type": "boolean", "default": False} for name in BOOLEANS},
    "response_format": object_schema({"type": {"enum": list(JSON_MODES)}, "json_schema": {"type": "object"}}, "type"),
    "lora": TEXT,
}
TOOL = object_schema({"name": NON_EMPTY_TEXT, "description": TEXT, "parameters": {"type": "object"}}, "name")
MESSAGE = object_schema({"role": TEXT, "content": TEXT}, "role", "content")
MESSAGE_PROPERTIES = {
    "messages": array_schema(MESSAGE),
    "tools": array_schema({"anyOf": [TOOL, object_schema({"function": TOOL}, "function")]}),
    "functions": array_schema(object_schema({"name": NON_EMPTY_TEXT, "code": TEXT}, "name", "code")),
}
INPUT: dict[str, Any] = {
    "type": "object",
    "oneOf": [
        {"title": "Prompt", "properties": {"prompt": NON_EMPTY_TEXT, **PARAMETERS}, "required": ["prompt"]},
        {"title": "Messages", "properties": {**MESSAGE_PROPERTIES, **PARAMETERS}, "required": ["messages"]},
    ],
}
COUNT = {"type": "number", "default": 0}
USAGE = {
    "type": "object",
    "properties": dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), COUNT),
}
TOOL_CALLS = array_schema(object_schema({"name": TEXT, "arguments": {"type": "object"}}))
OUTPUT: dict[str, Any] = {
    "oneOf": [
        object_schema({"response": TEXT, "usage": USAGE, "tool_calls": TOOL_CALLS}, "response"),
        {"type": "string", "format": "binary"},
    ]
}
