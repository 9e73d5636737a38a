"""OpenAI's Responses API: write answers as its objects and its events. No response is stored.

`responses_input.py` reads the requests. `output.py` has the code that OpenAI's routes share.
"""

import itertools
import time
from collections.abc import Iterator, Mapping
from typing import Any

from llama3.api_format import ApiFormat, Llama
from llama3.completion import Piece
from llama3.errors import ContractError, RequestError
from llama3.openai_api.input import start_stream, to_bad_input
from llama3.openai_api.output import arguments_text, error_body, logprob_objects, new_id, openai_error, tool_calls
from llama3.openai_api.responses_input import check_request, check_tool_choice
from llama3.tools import Call
from llama3.workers_ai import Stream, encode_prompt, may_call_tools
from llama3.workers_ai_input import check_type, to_contract_error


def start_response(llama: Llama, body: Any) -> tuple[Stream, dict[str, Any]]:
    """Validate the request and start its generation -> (stream, parameters). Raises ContractError."""
    parameters = check_request(llama, body)
    choice = check_tool_choice(parameters["body"].get("tool_choice", "auto"))
    parallel = parameters["body"].get("parallel_tool_calls", True)
    if choice not in ("auto", "none"):  # a call is demanded, and text.format applies to text only
        parameters.pop("response_format", None)
    try:
        ids, grammar = encode_prompt(llama, parameters, choice, check_type("/parallel_tool_calls", parallel, "boolean"))
        return start_stream(llama, ids, grammar, parameters), parameters
    except RequestError as error:
        raise to_bad_input(error) from error


def result(stream: Stream, parameters: dict[str, Any]) -> dict[str, Any]:
    pieces = list(stream)
    text = "".join(piece.text for piece in pieces)
    calls = tool_calls(text, stream, parameters)
    logprobs = [logprob for piece in pieces for logprob in logprobs_of(piece, parameters)]
    output = [call_item(call) for call in calls] or [message_item(new_id("msg_"), text, logprobs, state(stream))]
    return finished(new_response(stream, parameters), stream, output)


class Events:
    """Makes the events of one response, and numbers them."""

    def __init__(self) -> None:
        self.message_id, self.numbers = new_id("msg_"), itertools.count()

    def event(self, kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": f"response.{kind}", "sequence_number": next(self.numbers), **fields}

    def of_text(self, kind: str, **fields: Any) -> dict[str, Any]:
        return self.event(kind, item_id=self.message_id, output_index=0, content_index=0, **fields)

    def message_begins(self) -> Iterator[dict[str, Any]]:
        item = {**message_item(self.message_id, "", [], "in_progress"), "content": []}
        yield self.event("output_item.added", output_index=0, item=item)
        yield self.of_text("content_part.added", part=text_part("", []))

    def message_ends(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        (part,) = item["content"]
        yield self.of_text("output_text.done", text=part["text"], logprobs=part["logprobs"])
        yield self.of_text("content_part.done", part=part)
        yield self.event("output_item.done", output_index=0, item=item)

    def whole_call(self, i: int, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        arguments, place = item["arguments"], {"item_id": item["id"], "output_index": i}
        begun = {**item, "arguments": "", "status": "in_progress"}
        yield self.event("output_item.added", output_index=i, item=begun)
        yield self.event("function_call_arguments.delta", **place, delta=arguments)
        yield self.event("function_call_arguments.done", **place, arguments=arguments, name=item["name"])
        yield self.event("output_item.done", output_index=i, item=item)


def chunks(stream: Stream, parameters: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The answer as events; the last one has the whole response. Raises nothing: an error is an event.

    Tool calls are sent whole, near the end. Calls that were cut short are sent there as text.
    """
    events, response = Events(), new_response(stream, parameters)
    text, sent = "", ""
    logprobs: list[dict[str, Any]] = []  # of the text that was sent
    unsent: list[dict[str, Any]] = []
    try:
        yield events.event("created", response=response)
        yield events.event("in_progress", response=response)
        for piece in stream:
            text += piece.text
            unsent += logprobs_of(piece, parameters)
            if text == sent or (may_call_tools(parameters) and text.startswith("{")):
                continue
            if not sent:
                yield from events.message_begins()
            yield events.of_text("output_text.delta", delta=text[len(sent) :], logprobs=unsent)
            sent, logprobs, unsent = text, logprobs + unsent, []
        output = [call_item(call) for call in tool_calls(text, stream, parameters)]
        for i, item in enumerate(output):
            yield from events.whole_call(i, item)
        if not output:
            if not sent:
                yield from events.message_begins()
            if text != sent or unsent:
                yield events.of_text("output_text.delta", delta=text[len(sent) :], logprobs=unsent)
            output = [message_item(events.message_id, text, logprobs + unsent, state(stream))]
            yield from events.message_ends(output[0])
        yield events.event(state(stream), response=finished(response, stream, output))
    except Exception as error:
        yield error_event(to_contract_error(error), next(events.numbers))
    finally:
        stream.close()


def error_event(error: ContractError, number: int = 0) -> dict[str, Any]:
    """The event of an error, whose fields stand in "error", too: there OpenAI's clients raise an exception for them."""
    fields = openai_error(str(error), error.code, error.status)
    fields = {**fields, "code": str(fields["code"])}
    return {**fields, "type": "error", "sequence_number": number, "error": fields}


# ---- the objects ----


def new_response(stream: Stream, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A response that has no output yet, with the parameters that it is generated with."""
    body, sampling = parameters["body"], parameters["sampling"]
    return {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "metadata": body.get("metadata", {}),
        "model": parameters["model"],
        "output": [],
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "temperature": sampling.get("temperature"),
        "top_p": sampling.get("top_p"),
        "max_output_tokens": body.get("max_output_tokens"),
        "top_logprobs": parameters["logprobs"] or 0,
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools", []),
        "text": {"format": {"type": "text"}, **{name: x for name, x in body.get("text", {}).items() if x is not None}},
        "truncation": "disabled",
        "previous_response_id": None,
        "background": False,
        "store": False,
        "usage": None,
        "seed": stream.seed,
    }


def finished(response: dict[str, Any], stream: Stream, output: list[dict[str, Any]]) -> dict[str, Any]:
    usage, incomplete = stream.usage, state(stream) == "incomplete"
    return {
        **response,
        "status": state(stream),
        "incomplete_details": {"reason": "max_output_tokens"} if incomplete else None,
        "output": output,
        "usage": {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.total_tokens,
        },
    }


def state(stream: Stream) -> str:
    """The status of an answer, which is also the name of its last event."""
    return "incomplete" if stream.finish_reason == "length" else "completed"


def message_item(id: str, text: str, logprobs: list[dict[str, Any]], status: str) -> dict[str, Any]:
    content = [text_part(text, logprobs)]
    return {"id": id, "type": "message", "status": status, "role": "assistant", "content": content}


def text_part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def call_item(call: Call) -> dict[str, Any]:
    ids = {"id": new_id("fc_"), "call_id": new_id("call_")}
    fields = {"type": "function_call", "status": "completed", "name": call.name}
    return {**ids, **fields, "arguments": arguments_text(call)}


def logprobs_of(piece: Piece, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [] if parameters["logprobs"] is None else logprob_objects(parameters, piece)


RESPONSES = ApiFormat(start_response, result, chunks, error_event, dict, error_body, named_events=True)
