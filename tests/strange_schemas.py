"""Random JSON Schemas for fuzzing: every keyword, with values of the right and of the wrong kind."""

import random
from typing import Any
from urllib.parse import quote

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


# ---- schemas with references, which mostly have a meaning ----

DEFINED = ["a", "L", "a/b", "m~n", "p%q", "$ref", "properties", "é", "0"]
LIKE_REFERENCES = [
    "#",
    "#/$defs/a",
    {"$ref": "#/$defs/a"},
    {"$ref": "#/definitions/L", "$defs": {"a": 1}},
    [{"$ref": "#"}],
]


def pointer(*keys: str) -> str:
    """A reference to the place under these keys of the root, escaped as a JSON pointer in a URI's fragment."""
    return "#" + "".join("/" + quote(key.replace("~", "~0").replace("/", "~1"), safe="~$") for key in keys)


def schema_with_references(dice: random.Random) -> dict[str, Any]:
    """A schema that accepts objects, whose references lead to `$defs`, `definitions`, both inside others, and the root.

    Among its data (const, enum, default, examples, names of properties) are values that look like references.
    """
    places = [
        (holder, name) for holder in ("$defs", "definitions") for name in dice.sample(DEFINED, dice.randint(0, 2))
    ]
    places += [(*place, dice.choice(["$defs", "definitions"]), dice.choice(DEFINED)) for place in places[:1]]
    targets = ["#", *(pointer(*place) for place in places)]

    def value(depth: int) -> dict[str, Any]:
        draw = dice.random()
        if draw < 0.3:
            return {"$ref": dice.choice(targets)}
        if draw < 0.45 and depth > 0:
            return structure(depth - 1)
        if draw < 0.55 and depth > 0:
            return {"type": "array", "items": value(depth - 1), "maxItems": 2}
        if draw < 0.65 and depth > 0:
            return {"anyOf": [value(depth - 1), {"type": "null"}]}
        leaves = [
            {"type": "boolean"},
            {"type": "integer", "minimum": -2, "maximum": 12},
            {"type": "string", "maxLength": 3},
        ]
        leaves += [{"const": dice.choice(LIKE_REFERENCES)}, {"enum": dice.sample(LIKE_REFERENCES, 2)}]
        return {**dice.choice(leaves), **dice.choice([{}, {}, {"default": dice.choice(LIKE_REFERENCES)}])}

    def structure(depth: int) -> dict[str, Any]:
        properties = {name: value(depth) for name in dice.sample(DEFINED, dice.randint(0, 3))}
        required = [name for name in properties if dice.random() < 0.3]
        return {
            "type": "object",
            "properties": properties,
            **({"required": required} if required else {}),
            "additionalProperties": dice.choice([False, False, {"type": "null"}, value(0)]),
            **dice.choice([{}, {}, {"examples": LIKE_REFERENCES}]),
        }

    root = structure(2)
    kind = dice.choice(["object", "object", "union", "reference", "untyped"])
    if kind == "union":
        root = {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 3}, root]}
    elif kind == "untyped":
        del root["type"]
    for place in places:
        holder = root
        for key in place[:-1]:
            holder = holder.setdefault(key, {})
        holder[place[-1]] = structure(1) if dice.random() < 0.5 else value(1)
    if kind == "reference":
        holders = {key: root.pop(key) for key in ("$defs", "definitions") if key in root}
        root = {"$ref": "#/$defs/root", **holders, "$defs": {**holders.get("$defs", {}), "root": root}}
    return root
