"""`POST /inspect/run`: look inside the model that runs, for the page `/inspect`.

Its path is not the page's: a page needs no token, and this needs one.

The activations are computed on the CPU, beside the requests of others. So a request is bounded, and there is one at a
time.
"""

from typing import Any

from llama3.errors import RequestError
from llama3.inspect.page import page_data
from llama3.inspect.run import SMALL, inspect
from llama3.inspect.without import parse_part
from llama3.llama import Llama
from llama3.workers_ai_input import bad_input, check_type, validate

MAX_TOKENS = 200  # of an answer
MAX_PROMPT = 256  # tokens
SAMPLING = (
    "max_tokens", "temperature", "top_p", "top_k", "seed", "repetition_penalty", "frequency_penalty", "presence_penalty"
)  # fmt: skip


def inspect_object(llama: Llama, body: Any) -> dict[str, Any]:
    """The inputs of the route `run`, with "without", a list of parts -> `page_data`. Raises ContractError."""
    inputs = validate(body)
    parts = check_type("/without", body.get("without", []), "array")
    try:
        without = [
            parse_part(check_type(f"/without/{i}", part, "string"), llama.config) for i, part in enumerate(parts)
        ]
        if inputs.get("raw") and "prompt" in inputs:
            ids = llama.encode(inputs["prompt"])
        else:
            ids = llama.encode_chat(inputs.get("messages") or [{"role": "user", "content": inputs["prompt"]}])
        if len(ids) > MAX_PROMPT:
            raise RequestError(f"the prompt has {len(ids)} tokens; a page shows at most {MAX_PROMPT}")
        given = {name: inputs[name] for name in SAMPLING if name in inputs}
        if given.setdefault("max_tokens", 64) > MAX_TOKENS:
            raise RequestError(f"max_tokens is {given['max_tokens']}; a page shows at most {MAX_TOKENS}")
        each = llama.checkpoint.parameters <= SMALL
        return page_data(inspect(llama, ids, without, each=each, **given))
    except RequestError as error:
        raise bad_input(str(error)) from None
