"""Structured output: a JSON Schema as a mask over the vocabulary, anew before every token (llguidance, extra `json`).

What is forbidden cannot be drawn, so whatever the model, a text that ends is JSON that the schema accepts. A schema
that the grammar engine cannot enforce is refused: never is a text let through unconstrained.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from decimal import Decimal
from math import prod
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from llama3.byte_pair import PATTERN
from llama3.errors import GrammarError, RequestError
from llama3.limits import LIMITS
from llama3.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

MAX_DEPTH = 64  # of objects and lists in one another
LEAST = -(2.0**62)  # of all numbers in a schema
MAX_REMAINDERS = 50_000  # by all multipleOf of a schema, multiplied
NAMED = {"type", "properties", "required", "title", "description", "$schema"}  # of parameters that are all named
TEXT = "TEXT: /[^{](.|\\n)*/"  # what does not begin like a call of a tool
COST = {  # what compiling and following one schema may cost; far beyond what schemas in use need
    "max_grammar_size": 50_000,
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,
    "verbose_errors": False,
}

_tokenizers: "WeakKeyDictionary[Tokenizer, LLTokenizer]" = WeakKeyDictionary()  # each takes 0.4 s and 20 MB
_lock = threading.Lock()


class Constraint:
    """One text on its way through a grammar."""

    def __init__(self, tokenizer: Tokenizer, grammar: str, stop_ids: frozenset[int], vocab_size: int):
        """grammar: of `schema_grammar` or `tools_grammar`. stop_ids: of these one ends the text. vocab_size: rows of
        the embedding, which may be padded.

        Compiles the grammar: milliseconds, at most about a second. Raises RequestError for what cannot be enforced.
        """
        engine = _engine()
        self._matcher = engine.LLMatcher(
            _tokenizer_for(tokenizer, stop_ids), grammar, log_level=0, limits=engine.LLParserLimits(**COST)
        )
        if self._matcher.is_error():
            raise RequestError(f"the JSON schema cannot be enforced: {one_line(self._matcher.get_error())}")
        self._n_tokens = tokenizer.vocab_size
        self._bits = engine.numpy.allocate_token_bitmask(1, self._n_tokens)  # (1, words) int32
        self._vocab_size, self._stop_ids = vocab_size, stop_ids
        self._followed = 0  # tokens that the matcher has taken in
        try:
            self.allowed([])  # a schema that refers to itself without end compiles, and fails at its first token
        except GrammarError:
            raise RequestError(f"the JSON schema cannot be enforced: {one_line(self._matcher.get_error())}") from None

    def allowed(self, tokens: Sequence[int]) -> np.ndarray:
        """Which tokens may follow `tokens`, all of the text so far -> (vocab_size,) bool.

        Call it with a text that grows: only what is new is read. Raises GrammarError if the engine gives up.
        """
        self._follow(tokens)
        out = np.zeros(self._vocab_size, bool)
        _engine().numpy.fill_next_token_bitmask(self._matcher, self._bits)
        self._check()
        n = min(self._n_tokens, self._vocab_size)
        out[:n] = np.unpackbits(self._bits[0].view(np.uint8), bitorder="little", count=n)
        return out

    def forced(self, tokens: Sequence[int]) -> list[int]:
        """What must follow `tokens`, as far as it is certain: those that `allowed` would give one by one."""
        self._follow(tokens)
        found = self._matcher.compute_ff_tokens()
        self._check()
        return [int(token) for token in found]

    def _follow(self, tokens: Sequence[int]) -> None:
        for token in tokens[self._followed :]:
            self._matcher.consume_token(token)
            self._followed += 1
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"the JSON schema cannot be followed any further: {one_line(self._matcher.get_error())}")


def schema_grammar(schema: Mapping[str, Any]) -> str:
    """JSON that the schema accepts, without white space. Raises RequestError for what is no schema, or too large."""
    matcher, text = _engine().LLMatcher, checked(schema)
    try:
        return str(matcher.grammar_from_json_schema(text, overrides={"whitespace_flexible": False}))
    except ValueError as error:
        raise RequestError(f"the JSON schema is not one: {one_line(error)}") from None


def tools_grammar(tools: Sequence[Mapping[str, Any]], must_call: bool = False) -> str:
    """Calls of these tools, {"name": ..., "parameters": {...}}, several of them with "; " between; or, unless one must
    be called, text that does not begin like a call. Tools as `llama3.tools` has them.
    """
    calls: list[dict[str, Any]] = []
    definitions: dict[str, Any] = {}
    for i, tool in enumerate(tools):
        parameters = moved(json.loads(checked(tool["parameters"])), f"#/$defs/{i}.")
        own = parameters.pop("$defs", {})
        if not isinstance(own, dict):
            raise RequestError(
                f"the JSON schema of {tool['name']!r}: $defs is {type(own).__name__}; expected an object"
            )
        definitions |= {f"{i}.{name}": schema for name, schema in own.items()}
        if parameters.keys() <= NAMED and parameters.get("properties"):
            parameters["additionalProperties"] = False  # weak models would go on and invent some
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool["name"]}, "parameters": parameters},
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    call = checked({"anyOf": calls, "$defs": definitions})
    start = 'start: call ("; " call)*' if must_call else f'start: TEXT | call ("; " call)*\n{TEXT}'
    options = '{"whitespace_flexible": false}'
    return str(_engine().LLMatcher.grammar_from_lark(f'{start}\ncall: %json {call[:-1]}, "x-guidance": {options}}}\n'))


def no_call_grammar() -> str:
    """Text that does not begin like a call."""
    return str(_engine().LLMatcher.grammar_from_lark(f"start: TEXT\n{TEXT}\n"))


def moved(value: Any, place: str) -> Any:
    """A schema that becomes part of a larger one: "#/$defs/x" is now `place` + "x"."""
    if isinstance(value, list):
        return [moved(inner, place) for inner in value]
    if not isinstance(value, dict):
        return value
    out = {key: moved(inner, place) for key, inner in value.items()}
    if isinstance(out.get("$ref"), str) and out["$ref"].startswith("#/$defs/"):
        out["$ref"] = place + out["$ref"].removeprefix("#/$defs/")
    return out


def checked(schema: Mapping[str, Any]) -> str:
    """The schema as JSON. Raises RequestError for what is no object, too deep, or too long."""
    if not isinstance(schema, Mapping):
        raise RequestError(f"the JSON schema is {type(schema).__name__}; expected an object")
    if depth_of(schema) > MAX_DEPTH:
        raise RequestError(f"the JSON schema is more than {MAX_DEPTH} levels deep")
    # "x-guidance" would set the engine's own options, which are not the client's to set.
    try:
        text = json.dumps({key: value for key, value in schema.items() if key != "x-guidance"}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RequestError(f"the JSON schema is not JSON: {one_line(error)}") from None
    plain = json.loads(text, parse_int=number_of, parse_float=number_of)
    check_multiples(plain)
    text = json.dumps(plain)
    if len(text) > LIMITS.schema_bytes:
        raise RequestError(f"the JSON schema has {len(text):,} bytes; expected at most {LIMITS.schema_bytes:,}")
    return text


def number_of(digits: str) -> int | float:
    """Beyond 2**53 the engine writes the nearest float64, as JavaScript does. Where it is to write a whole number near
    -2**63 it crashes, and the process with it. Raises RequestError for those, and beyond float64.
    """
    value = float(digits)
    if value == float("inf"):
        raise RequestError(f"the JSON schema has the number {digits[:30]}..., which is too large for a float64")
    if value < LEAST:
        raise RequestError(f"the JSON schema has the number {digits[:30]}; expected none below {LEAST:.1e}")
    return int(digits) if digits.lstrip("-").isdecimal() and abs(value) <= 2**53 else value


def check_multiples(schema: Any) -> None:
    """The engine counts remainders one by one, and of two multiples at one place every pair of them: 2**31 take a
    minute and four gigabytes. Raises RequestError for more than it can be asked to count.
    """
    found, here = set(), [schema]
    while here:
        value = here.pop()
        if isinstance(value, list):
            here += value
        if isinstance(value, dict):
            here += value.values()
            if isinstance(multiple := value.get("multipleOf"), int | float):
                found.add(Decimal(repr(abs(multiple))).normalize().as_tuple().digits)  # 0.25 and 2,500 -> 2, 5
    remainders = prod(int("".join(map(str, digits))) or 1 for digits in found if digits)
    if remainders > MAX_REMAINDERS:
        raise RequestError(
            f"multipleOf in the JSON schema leaves {remainders:.1e} remainders to be told apart; "
            f"expected at most {MAX_REMAINDERS:,}"
        )


def depth_of(value: Any) -> int:
    """Of objects and lists in one another; it stops counting above MAX_DEPTH."""
    level, here = 0, [value]
    while here and level <= MAX_DEPTH:
        level += 1
        values = [v for v in here if isinstance(v, Mapping | list)]
        here = [inner for v in values for inner in (v.values() if isinstance(v, Mapping) else v)]
    return level


def one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]


def _engine() -> Any:
    try:
        import llguidance
        import llguidance.numpy
    except ImportError:
        raise RequestError("JSON mode needs llguidance: pip install 'llama3[json]'") from None
    return llguidance


def _tokenizer_for(tokenizer: Tokenizer, stop_ids: frozenset[int]) -> "LLTokenizer":
    with _lock:
        if tokenizer not in _tokenizers:
            engine = _engine()
            _tokenizers[tokenizer] = engine.LLTokenizer.from_tiktoken(
                encoder=tokenizer.ranks,
                special_tokens=tokenizer.special,
                pattern=PATTERN,
                eos_token=sorted(id for id in stop_ids if id < tokenizer.vocab_size),
                n_vocab=None,
                slices=engine.LLTokenizer.json_slices(),
            )
        return _tokenizers[tokenizer]
