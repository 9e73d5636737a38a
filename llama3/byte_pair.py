"""Byte-pair encoding: text is split into chunks, and the bytes of a chunk are merged into tokens, lowest rank first.

The method is Sennrich et al. 2016 (arXiv:1508.07909), on bytes instead of letters as in GPT-2, so that any text can be
written. A token's rank is its id: how early it was learnt, and how early it is merged.
"""

from collections.abc import Mapping
from heapq import heapify, heappop, heappush

PATTERN = (  # alternatives are tried in this order at each place; together they cover any text
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # what English hangs on to a word
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"  # a word, with the space or the sign before it
    r"|\p{N}{1,3}"  # digits by threes, from the left
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"  # signs, with the space before and the line ends after them
    r"|\s*[\r\n]+"  # empty lines
    r"|\s+(?!\S)"  # white space, all but its last character if text follows: a word takes that one along
    r"|\s+"
)


def split(text: str) -> list[str]:
    """Text -> chunks, which joined give the text again. `split("I'm 1234 ") == ["I", "'m", " ", "123", "4", " "]`

    The standard `re` won't do: it has no \\p{L}, and takes U+001C..U+001F for white space. `regex` agrees with tiktoken
    on every character that both know. Characters younger than the Unicode version of one of them (tiktoken 0.14: 16,
    regex 2026.11: 18) are letters to one and signs to the other, so there alone ids by hand may differ from tiktoken's.
    """
    import regex  # here, because tiktoken's fast path does without it

    chunks: list[str] = regex.findall(PATTERN, text)
    return chunks


def merge(chunk: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """The bytes of a chunk -> token ids. Of all neighbours that form a token, those with the lowest rank are joined
    first, the leftmost if there are several; and so on, until no two neighbours do. Each byte alone must have a rank.

    Candidates wait in a heap, so that n bytes take n log n steps and not the square of n: a chunk may be a megabyte.
    """
    size = len(chunk)
    end = [*range(1, size + 1), size]  # the part that starts at i ends at end[i]; end[i] == i: no part starts there
    before = list(range(-1, size))  # the part that starts at i follows the one that starts at before[i]
    # A candidate is one number, rank * size + start: for these the order of numbers is the order of merging.
    heap = [ranks[pair] * size + i for i in range(size - 1) if (pair := chunk[i : i + 2]) in ranks]
    heapify(heap)

    while heap:
        rank, start = divmod(heappop(heap), size)
        middle = end[start]
        stop = end[middle]
        if stop == middle or ranks.get(chunk[start:stop]) != rank:
            continue  # one of the two has been joined with another neighbour meanwhile
        end[start], end[middle], before[stop] = stop, middle, start
        if start > 0 and (left := ranks.get(chunk[before[start] : stop])) is not None:
            heappush(heap, left * size + before[start])
        if stop < size and (right := ranks.get(chunk[start : end[stop]])) is not None:
            heappush(heap, right * size + start)

    ids, start = [], 0
    while start < size:
        ids.append(ranks[chunk[start : end[start]]])
        start = end[start]
    return ids
