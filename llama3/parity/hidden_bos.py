"""Implementations that change the tokens on their way in: one more <|begin_of_text|>, or none.

The files then hold the same tokens, and every row of logits differs. RoPE depends on distances alone, so a token more
at the start changes the numbers only because attention sees it.
"""

from collections.abc import Iterator, Sequence
from functools import partial

from llama3.parity.planted import Fault


def hidden_bos(tokens: Sequence[int], bos: int | None) -> Iterator[Fault]:
    """The faults that these tokens can have. bos: the id of <|begin_of_text|>, if it is known."""
    first = int(tokens[0])
    for new in dict.fromkeys([first, *([] if bos is None else [bos])]):
        what = "the first token is there twice: the implementation puts it before tokens that begin with it"
        if new == bos:
            twice = "a second <|begin_of_text|>" if first == bos else "a <|begin_of_text|> that the file does not have"
            what = f"the implementation puts {twice} before the tokens"
        for shift, how in ((1, ""), (0, ", and gives its logits as those of the first token: rows are off by one")):
            yield Fault("bos", what + how, tokens=partial(_with, new), shift=shift, in_layers=False)
    if len(tokens) > 1 and bos in (None, first):
        what = "the implementation drops the first token, <|begin_of_text|>"
        for shift, how in ((-1, ""), (0, ", and its rows of logits are off by one")):
            yield Fault("bos", what + how, tokens=lambda t: t[1:], shift=shift, in_layers=False)


def _with(first: int, tokens: list[int]) -> list[int]:
    return [first, *tokens]
