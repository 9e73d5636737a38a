"""Grades `merge` (page 1)."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from unittest.mock import patch

from llama3 import plain
from llama3.tour.exercises.part import Part

Ranks = Mapping[bytes, int]
Key = Callable[[int, int, int], tuple[int, ...]]


def by(key: Key, once: bool = False) -> Callable[[bytes, Ranks], list[int]]:
    """`merge` with another choice: the pair of lowest key(rank, index, length of the joined token)."""

    def merge(chunk: bytes, ranks: Ranks) -> list[int]:
        parts = [bytes([byte]) for byte in chunk]
        while True:
            joined = [(i, parts[i] + parts[i + 1]) for i in range(len(parts) - 1)]
            pairs = [(key(ranks[token], i, len(token)), i) for i, token in joined if token in ranks]
            if not pairs:
                break
            _, i = min(pairs)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
            if once:
                break
        return [ranks[part] for part in parts]

    return merge


def longest(chunk: bytes, ranks: Ranks) -> list[int]:
    """The longest token at each place, from the left."""
    ids = []
    while chunk:
        n = max(n for n in range(1, len(chunk) + 1) if chunk[:n] in ranks)
        ids.append(ranks[chunk[:n]])
        chunk = chunk[n:]
    return ids


def one_pass(chunk: bytes, ranks: Ranks) -> list[int]:
    """Join neighbours from left to right, once."""
    parts: list[bytes] = []
    for byte in chunk:
        if parts and parts[-1] + bytes([byte]) in ranks:
            parts[-1] += bytes([byte])
        else:
            parts.append(bytes([byte]))
    return [ranks[part] for part in parts]


def parts_of(chunk: bytes, ranks: Ranks) -> list[bytes]:
    tokens = {rank: token for token, rank in ranks.items()}
    return [tokens[rank] for rank in plain.merge(chunk, ranks)]


MISTAKES: dict[str, Callable[[bytes, Ranks], list]] = {
    "it joins the pair of highest rank first: the lowest rank, learnt earliest, comes first": by(
        lambda rank, i, n: (-rank, i)
    ),
    "it joins the pair of highest rank first, and of equal ones the rightmost: lowest and leftmost come first": (
        by(lambda rank, i, n: (-rank, -i))
    ),
    "it joins one pair and stops: repeat until no two neighbours form a token": by(
        lambda rank, i, n: (rank, i), once=True
    ),
    "of equal pairs it joins the rightmost first: the leftmost comes first": by(lambda rank, i, n: (rank, -i)),
    "it joins the leftmost pair first, whatever its rank: the lowest rank comes first": by(lambda rank, i, n: (i,)),
    "it takes the longest token at each place: parts are joined in the order of ranks": longest,
    "it joins the longest token first: the lowest rank comes first": by(lambda rank, i, n: (-n, rank, i)),
    "it goes through the bytes once, from left to right: of all pairs the one of lowest rank comes first": one_pass,
    "these are the parts: return the id of each": lambda chunk, ranks: parts_of(chunk, ranks),
    "nothing is joined: these are the ids of single bytes": lambda chunk, ranks: [
        ranks[bytes([byte])] for byte in chunk
    ],
}
TOKENS = ["a", "b", "c", "d", "bc", "ab", "aa", "cd", "bcd", "aab", "abab", "da", "dab", "cda", "bcda", "dbd"]
RANKS = {token.encode(): rank for rank, token in enumerate(TOKENS)}
CHUNKS = (b"abcd", b"aaa", b"ab", b"aaab", b"bcdab", b"ababab", b"dcbaab", b"bcdabcdaab", b"cdab", b"dbd", b"d", b"")
PARTS = [
    Part(
        "merge",
        plain.merge,
        {f"{chunk!r}": (chunk, RANKS) for chunk in CHUNKS},
        MISTAKES,
        hint="write down the parts after each join, and the rank of each pair",
    )
]


def install(functions: dict[str, Callable]) -> AbstractContextManager:
    """Let plain.py use the reader's function."""
    return patch.object(plain, "merge", functions["merge"])
