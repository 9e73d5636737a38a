"""Whether two sequences of tokens differ only in <|begin_of_text|>, missing or doubled at the start."""

import numpy as np
from numpy import ndarray as Array

from llama3.errors import CheckpointError


def beginning(ours: Array, right: Array | None) -> str | None:
    """What is wrong with our <|begin_of_text|>, if that alone differs. Raises CheckpointError for other tokens."""
    if right is None or np.array_equal(ours, right):
        return None
    if np.array_equal(ours, right[1:]):
        return "<|begin_of_text|> is missing"
    if len(ours) == len(right) + 1 and np.array_equal(ours[1:], right) and ours[0] == right[0]:
        return "<|begin_of_text|> is there twice"
    n, m = len(ours), len(right)
    first = next((i for i in range(min(n, m)) if ours[i] != right[i]), min(n, m))
    a, b = (tokens[first] if first < len(tokens) else "none" for tokens in (ours, right))
    raise CheckpointError(
        f"the files hold different tokens, {n} and {m} of them; the first difference is at {first}: {a} in ours, "
        f"{b} in the reference"
    )
