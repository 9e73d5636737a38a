"""Structured output: which tokens may come next, so that the text follows a JSON Schema or is a call of a tool.

A grammar becomes a mask over the vocabulary, computed again before every token by llguidance (the extra `json`). A
token that the mask forbids cannot be drawn. So with any model, a text that is not cut short is accepted by the schema.
A schema that llguidance cannot enforce is refused: no text is ever generated without its constraint.
"""

import json
import re
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from llama3.byte_pair import PATTERN
from llama3.errors import GrammarError, RequestError
from llama3.schema_check import schema_json, short_message
from llama3.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

LLGUIDANCE_LIMITS = {  # the cost of compiling and following one schema; usual schemas need far less
    "max_grammar_size": 50_000,
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,
    "verbose_errors": False,
}
TEXT_RULE = "TEXT: /[^{](.|\\n)*/"  # in Lark's notation: text that does not begin like a call
PLACE_IN_GRAMMAR = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?|\n *\d+ \| .*", re.DOTALL)
LISTING_KEYWORDS = {  # see `only_lists_properties`
    *("type", "properties", "required", "$defs", "definitions"),
    *("title", "description", "default", "examples", "$comment", "$schema", "$id"),
}

_tokenizers: "WeakKeyDictionary[Tokenizer, LLTokenizer]" = WeakKeyDictionary()  # each takes 0.4 s and 20 MB
_lock = threading.Lock()  # guards _tokenizers


class Constraint:
    """One text that is generated under a grammar: which tokens may follow, as the text grows."""

    def __init__(self, tokenizer: Tokenizer, grammar: str, stop_ids: frozenset[int], vocab_size: int):
        """grammar: from `schema_grammar` or `tools_grammar`. stop_ids: the tokens that end the text. vocab_size: rows
        of the embedding, which may be padded.

        Compiling the grammar takes milliseconds, at most about a second. Raises RequestError if it cannot be enforced.
        """
        engine = _llguidance()
        self._matcher = engine.LLMatcher(
            _tokenizer_for(tokenizer, stop_ids), grammar, log_level=0, limits=engine.LLParserLimits(**LLGUIDANCE_LIMITS)
        )
        if self._matcher.is_error():
            message = short_message(PLACE_IN_GRAMMAR.sub("", self._matcher.get_error()))
            raise RequestError(f"the JSON schema cannot be enforced: {message}")
        self._n_tokens = tokenizer.vocab_size
        self._bits = engine.numpy.allocate_token_bitmask(1, self._n_tokens)  # (1, words) int32
        self._vocab_size, self._stop_ids = vocab_size, stop_ids
        self._n_consumed = 0  # tokens that the matcher has read
        try:
            self.allowed([])  # a schema that refers to itself without end compiles, but fails at its first token
        except GrammarError:
            message = short_message(self._matcher.get_error())
            raise RequestError(f"the JSON schema cannot be enforced: {message}") from None

    def allowed(self, tokens: Sequence[int]) -> np.ndarray:
        """Which tokens may follow `tokens`, the whole text so far -> (vocab_size,) bool.

        The text may only grow between calls: tokens that were read before are not read again. Raises GrammarError if
        llguidance gives up.
        """
        self._consume(tokens)
        out = np.zeros(self._vocab_size, bool)
        _llguidance().numpy.fill_next_token_bitmask(self._matcher, self._bits)
        self._check()
        n = min(self._n_tokens, self._vocab_size)
        out[:n] = np.unpackbits(self._bits[0].view(np.uint8), bitorder="little", count=n)
        return out

    def forced(self, tokens: Sequence[int]) -> list[int]:
        """The tokens that must follow `tokens`: for each of them, `allowed` would leave a single choice."""
        self._consume(tokens)
        found = self._matcher.compute_ff_tokens()
        self._check()
        return [int(token) for token in found]

    def _consume(self, tokens: Sequence[int]) -> None:
        for token in tokens[self._n_consumed :]:
            self._matcher.consume_token(token)
            self._n_consumed += 1
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            message = short_message(self._matcher.get_error())
            raise GrammarError(f"the JSON schema cannot be followed any further: {message}")


def schema_grammar(schema: Mapping[str, Any]) -> str:
    """The grammar of JSON that the schema accepts, without white space between its tokens.

    Raises RequestError if it is not a JSON Schema, or is too large.
    """
    matcher, text = _llguidance().LLMatcher, schema_json(schema)
    try:
        return str(matcher.grammar_from_json_schema(text, overrides={"whitespace_flexible": False}))
    except ValueError as error:
        raise RequestError(f"the JSON schema is not valid: {short_message(error)}") from None


def tools_grammar(tools: Sequence[Mapping[str, Any]], must_call: bool = False, parallel: bool = True) -> str:
    """The grammar of calls of these tools, {"name": ..., "parameters": {...}}, with "; " between them.

    must_call: if False, the grammar also accepts text that does not begin like a call. parallel: if False, it accepts
    at most one call. tools: as `llama3.tools.read_tools` returns them. Raises RequestError for a tool's schema that is
    not acceptable.
    """
    # Each tool's schema is a separate document, so that a "$ref" in it refers to this schema and not to the grammar.
    calls, documents = [], []
    for i, tool in enumerate(tools):
        name = json.dumps(tool["name"], ensure_ascii=False)
        calls.append(json.dumps(f'{{"name":{name},"parameters":', ensure_ascii=False) + f' arguments{i} "}}"')
        schema = arguments_schema(json.loads(schema_json(tool["parameters"])))
        documents.append(f"arguments{i}: %json {json.dumps({**schema, 'x-guidance': {'whitespace_flexible': False}})}")
    start = 'call ("; " call)*' if parallel else "call"
    rules = [f"start: {start}"] if must_call else [f"start: TEXT | {start}", TEXT_RULE]
    rules += [f"call: {' | '.join(calls)}", *documents]
    return str(_llguidance().LLMatcher.grammar_from_lark("\n".join(rules) + "\n"))


def no_call_grammar() -> str:
    """The grammar of text that does not begin like a call."""
    return str(_llguidance().LLMatcher.grammar_from_lark(f"start: TEXT\n{TEXT_RULE}\n"))


def arguments_schema(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a tool's arguments: an object that the tool's own schema accepts.

    A schema that only lists its properties also accepts others, and weak models would invent some. So such a schema
    gets "additionalProperties": false.
    """
    out = dict(parameters)
    if only_lists_properties(parameters):
        out["additionalProperties"] = False
    if out.get("type") == "object":
        return out
    if "type" not in out and '"$ref"' not in json.dumps(out):
        return {**out, "type": "object"}
    # A reference to the schema's root ("#") must find the tool's own schema, without the "type" that is added here. So
    # that schema is embedded whole, with an identifier that its references are resolved against. llguidance does not
    # accept a "$ref" beside an identifier, so the "$ref" moves into "allOf".
    if "$ref" in out:
        more = out.get("allOf", [])
        out["allOf"] = [{"$ref": out.pop("$ref")}, *(more if isinstance(more, list) else [])]
    dialect = {"$schema": out["$schema"]} if "$schema" in out else {}
    id_keyword = "id" if "draft-04" in str(dialect) else "$id"
    return {**dialect, "allOf": [{"type": "object"}, {id_keyword: "urn:arguments", **out}]}


def only_lists_properties(schema: Mapping[str, Any]) -> bool:
    """Whether a schema lists properties, including all required ones, and has no rule about any others."""
    listed, required = schema.get("properties"), schema.get("required", [])
    if not (schema.keys() <= LISTING_KEYWORDS and isinstance(listed, dict) and isinstance(required, list)):
        return False
    return all(isinstance(name, str) and name in listed for name in required)


def _llguidance() -> Any:
    try:
        import llguidance
        import llguidance.numpy
    except ImportError:
        raise RequestError("JSON mode needs llguidance: pip install 'llama3[json]'") from None
    return llguidance


def _tokenizer_for(tokenizer: Tokenizer, stop_ids: frozenset[int]) -> "LLTokenizer":
    """llguidance's form of the tokenizer. It is made once for each tokenizer, with the stop_ids of the first call."""
    with _lock:
        if tokenizer not in _tokenizers:
            engine = _llguidance()
            _tokenizers[tokenizer] = engine.LLTokenizer.from_tiktoken(
                encoder=tokenizer.ranks,
                special_tokens={
                    token.content: token.id for token in tokenizer.added if token.id >= len(tokenizer.ranks)
                },
                pattern=PATTERN,
                eos_token=sorted(id for id in stop_ids if id < tokenizer.vocab_size),
                n_vocab=None,
                slices=engine.LLTokenizer.json_slices(),
            )
        return _tokenizers[tokenizer]
