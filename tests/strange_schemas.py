"""Random JSON Schemas for fuzzing: every keyword, with values of the right and of the wrong kind."""

import random
from typing import Any

NUMBERS = [0, -1, 1, 2, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 1 - 2**63, -(2**63), 10**18, 10**300, 1.5, -0.0, 5e-324]
NUMBERS += [1e308, -1e308]
TEXTS = ["", "a", "(", "[z-a]", "(a*)*b", r"\d{1,1000}", "(?=x)", r"\p{L}+", "^(a|b)+$", r"\1", ".{0,100000}"]
TEXTS += ["#", "#/$defs/a", "http://x/", "date-time", "uuid", "ipv4", "\0", "\U0001f600", "\ud7ff"]
TYPES = ["object", "array", "string", "number", "integer", "boolean", "null", ["string", "null"], ["integer", "object"]]
INNER = ["items", "additionalProperties", "not", "if", "then", "else", "propertyNames", "contains"]
NAMED = ["properties", "patternProperties", "$defs", "definitions"]
LISTS = ["anyOf", "oneOf", "allOf", "prefixItems"]
WORDS = ["pattern", "format", "$ref", "$id", "$anchor", "$schema", "title"]
COUNTS = ["minItems", "maxItems", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "multipleOf"]
OTHERS = ["type", "enum", "const", "required", "default", "x-guidance", "uniqueItems", "dependentRequired"]


def anything(dice: random.Random, depth: int) -> Any:
    """A random JSON value: a scalar, a list or a schema."""
    draw = dice.random()
    if draw < 0.4 or depth <= 0:
        return dice.choice([*NUMBERS, *TEXTS, True, False, None])
    if draw < 0.6:
        return [anything(dice, depth - 1) for _ in range(dice.randint(0, 3))]
    return strange_schema(dice, depth - 1)


def strange_schema(dice: random.Random, depth: int = 3) -> dict[str, Any]:
    """Up to four random keywords; a quarter of their values are of any kind, whatever the keyword."""

    def inner() -> Any:
        return strange_schema(dice, depth - 1) if depth > 0 else dice.choice([{}, True, False])

    out: dict[str, Any] = {}
    for key in dice.choices(INNER + NAMED + LISTS + WORDS + COUNTS + OTHERS, k=dice.choice([1, 1, 2, 2, 3, 4])):
        if dice.random() < 0.25:
            out[key] = anything(dice, depth)
        elif key == "type":
            out[key] = dice.choice(TYPES)
        elif key == "enum":
            out[key] = dice.choices([*NUMBERS, *TEXTS, None, {}, [], {"a": 1}], k=dice.randint(1, 4))
        elif key == "required":
            out[key] = dice.sample(["a", "b", "x"], 2)
        elif key in NAMED:
            out[key] = {dice.choice(["a", "b", *TEXTS]): inner() for _ in range(dice.randint(0, 3))}
        elif key in LISTS:
            out[key] = [inner() for _ in range(dice.randint(1, 3))]
        elif key in INNER:
            out[key] = inner()
        elif key in WORDS:
            out[key] = dice.choice(TEXTS)
        elif key in COUNTS:
            out[key] = dice.choice(NUMBERS)
        else:
            out[key] = anything(dice, depth)
    return out
