"""Values that a JSON Schema accepts, as a Hypothesis strategy. It supports the keywords that our schemas use."""

from typing import Any

from hypothesis import strategies as st

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def values_of(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "oneOf" in schema:
        return st.one_of([values_of({"type": schema.get("type"), **choice}) for choice in schema["oneOf"]])
    kind = schema.get("type")
    if kind == "string":
        return st.text(min_size=schema.get("minLength", 0), max_size=20)
    if kind == "boolean":
        return st.booleans()
    if kind == "integer":
        return st.integers(schema.get("minimum", 1), schema.get("maximum", 4))
    if kind == "number":
        return st.floats(schema.get("minimum"), schema.get("maximum"), allow_nan=False)
    if kind == "array":
        return st.lists(values_of(schema["items"]), max_size=3)
    if kind == "object":
        known = {name: values_of(inner) for name, inner in schema.get("properties", {}).items()}
        required = {name: known.pop(name) for name in schema.get("required", ())}
        if "additionalProperties" in schema:
            return st.dictionaries(st.text(max_size=8), values_of(schema["additionalProperties"]), max_size=3)
        return st.fixed_dictionaries(required, optional=known)
    return ANYTHING
