"""A step ahead: the next pass begins before the tokens of the last one are read, so that a GPU need not wait.

It has the same requests, one row each, and feeds them the tokens that the last pass draws, which only the device knows.
So no function may have to see these tokens first, and no request may pass its max_tokens. A request that turns out to
have ended has a row too many in the pass that has begun: the engine drops what it draws, and frees its position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llama3.errors import LogitsError
from llama3.request import Request
from llama3.sampler import Sample


class Pending(Protocol):
    """The result of a step, which a GPU may still be computing."""

    def samples(self) -> Sequence[Sample | LogitsError | None]: ...
    def launch_next(self) -> "Pending | None": ...  # one more row of each sequence: the token that this step draws


@dataclass(frozen=True)
class Running:
    """A pass that the model has begun."""

    requests: list[Request]
    pending: Pending
    may_follow: int  # how many passes of the same requests may begin before this one's tokens are known

    @property
    def in_vain(self) -> bool:
        """Whether all its requests have ended."""
        return all(request.finish_reason for request in self.requests)

    def begin_next(self) -> "Running | None":
        """Begin the pass after this one, with the same requests; None if it must wait for this one's tokens."""
        if not self.may_follow or any([request.finish_reason for request in self.requests]):  # a list: quicker
            return None
        pending = self.pending.launch_next()
        return None if pending is None else Running(self.requests, pending, self.may_follow - 1)


def may_follow(requests: Sequence[Request], all_draw: bool) -> int:
    """How many passes of these requests may begin before the tokens of a pass are known.

    all_draw: whether this pass draws a token for each request; one whose prompt is not at its end does not draw yet.
    """
    if not all_draw or any(request.needs_each_token for request in requests):
        return 0
    return min(request.tokens_left for request in requests) - 1  # none may pass its max_tokens
