"""Checks a JSON Schema before the grammar engine sees it: small enough, and without what would stall or crash it."""

import json
from collections.abc import Mapping
from decimal import Decimal
from math import prod
from typing import Any

from llama3.errors import RequestError
from llama3.limits import LIMITS

MAX_DEPTH = 64  # levels, the innermost values included
MIN_NUMBER = -(2.0**62)  # llguidance crashes near -2**63
MAX_REMAINDERS = 50_000  # the product of all values of multipleOf in a schema

ASSERTIONS = {  # the keywords of JSON Schema, draft 4 to 2020-12, that can refuse a value
    *("type", "enum", "const", "$ref", "$dynamicRef", "$recursiveRef", "allOf", "anyOf", "oneOf", "not", "if"),
    *("properties", "patternProperties", "additionalProperties", "propertyNames", "required", "dependencies"),
    *("dependentSchemas", "dependentRequired", "minProperties", "maxProperties", "unevaluatedProperties"),
    *("items", "prefixItems", "contains", "minItems", "maxItems", "uniqueItems", "unevaluatedItems"),
    *("pattern", "minLength", "maxLength", "format", "contentEncoding", "contentMediaType"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
ANNOTATIONS = {"title", "description", "default", "examples", "readOnly", "writeOnly", "deprecated", "$comment"}
STRUCTURE = {"$defs", "definitions", "$schema", "$id", "id", "$anchor"}


def looks_like_schema(value: Mapping[str, Any]) -> bool:
    """Whether an object is a JSON Schema at first sight.

    JSON Schema ignores keys that it does not know. So an object that has such keys, and no keyword that can refuse a
    value, accepts everything, which is hardly what its author meant.
    """
    return not ASSERTIONS.isdisjoint(value) or value.keys() <= ANNOTATIONS | STRUCTURE


def schema_json(schema: Mapping[str, Any]) -> str:
    """The schema as JSON text. Raises RequestError if it is no object, no JSON, too deep, too long or too costly, and
    if it does not look like a schema.
    """
    if not isinstance(schema, Mapping):
        raise RequestError(f"the JSON schema is {type(schema).__name__}; expected an object")
    if not looks_like_schema(schema):
        found = short_message(", ".join(map(repr, list(schema)[:5])))
        raise RequestError(f"the JSON schema has the keys {found}, and no keyword with a rule")
    if nesting_depth(schema) > MAX_DEPTH:
        raise RequestError(f"the JSON schema is more than {MAX_DEPTH} levels deep")
    # "x-guidance" would set llguidance's own options, which a client must not change.
    try:
        text = json.dumps({key: value for key, value in schema.items() if key != "x-guidance"}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RequestError(f"the JSON schema is not JSON: {short_message(error)}") from None
    normalised = json.loads(text, parse_int=parse_number, parse_float=parse_number)
    check_multiples(normalised)
    text = json.dumps(normalised)
    if len(text) > LIMITS.schema_bytes:
        raise RequestError(f"the JSON schema has {len(text):,} bytes; expected at most {LIMITS.schema_bytes:,}")
    return text


def parse_number(digits: str) -> int | float:
    """A number of the schema, as a float if it is beyond 2**53: there llguidance writes the nearest float64, as
    JavaScript does.

    Raises RequestError for a number beyond float64, and for one below MIN_NUMBER: when llguidance has to write a whole
    number near -2**63, it crashes and takes the process with it.
    """
    value = float(digits)
    if value == float("inf"):
        raise RequestError(f"the JSON schema has the number {digits[:30]}..., which is too large for a float64")
    if value < MIN_NUMBER:
        raise RequestError(f"the JSON schema has the number {digits[:30]}; expected none below {MIN_NUMBER:.1e}")
    return int(digits) if digits.lstrip("-").isdecimal() and abs(value) <= 2**53 else value


def check_multiples(schema: Any) -> None:
    """Raises RequestError if the schema's values of multipleOf would cost llguidance too much.

    llguidance has a state for each remainder, and for each pair of remainders where two values apply to one number:
    multipleOf 2**31 takes a minute and four gigabytes.
    """
    divisors, unvisited = set(), [schema]
    while unvisited:
        value = unvisited.pop()
        if isinstance(value, list):
            unvisited += value
        if isinstance(value, dict):
            unvisited += value.values()
            if isinstance(multiple := value.get("multipleOf"), int | float):
                digits = Decimal(repr(abs(multiple))).normalize().as_tuple().digits  # 0.25 -> 2, 5; 2,500 -> 2, 5
                divisors.add(digits)
    remainders = prod(int("".join(map(str, digits))) or 1 for digits in divisors if digits)
    if remainders > MAX_REMAINDERS:
        raise RequestError(
            f"multipleOf in the JSON schema leads to {remainders:.1e} remainders; expected at most {MAX_REMAINDERS:,}"
        )


def nesting_depth(value: Any) -> int:
    """The number of levels in a JSON value: 1 for a number, 2 for [1]. Stops counting above MAX_DEPTH."""
    level, values = 0, [value]
    while values and level <= MAX_DEPTH:
        level += 1
        containers = [v for v in values if isinstance(v, Mapping | list)]
        values = [inner for v in containers for inner in (v.values() if isinstance(v, Mapping) else v)]
    return level


def short_message(error: object) -> str:
    """The error's text on one line, at most 300 characters."""
    return " ".join(str(error).split())[:300]
