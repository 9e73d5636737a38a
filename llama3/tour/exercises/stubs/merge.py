"""Page 1: byte-pair encoding. Replace the last line of `merge`, then run: llama3 tour check 1"""

from collections.abc import Mapping


def merge(chunk: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """The bytes of a chunk -> the ids of its tokens.

    ranks: the id of each token, by its bytes. A lower id was learnt earlier. Every single byte has an id.

    At first, each byte is a part of its own. Of all neighbouring parts that join to a token, join the pair whose token
    has the lowest id, and of equal ones the leftmost. Repeat this until no two neighbours form a token.

        merge(b"abab", {b"a": 0, b"b": 1, b"ab": 2}) == [2, 2]
    """
    raise NotImplementedError
