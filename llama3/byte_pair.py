"""Byte-pair encoding: text is split into chunks, and the bytes of a chunk are merged into tokens, lowest rank first.

The method is Sennrich et al. 2016 (arXiv:1508.07909), applied to bytes as in GPT-2, so that any text can be encoded. A
token's rank is its id. The earlier a token was learnt in training, the lower its rank, and the earlier it is merged.
"""

from collections.abc import Mapping
from heapq import heapify, heappop, heappush

PATTERN = (  # the alternatives are tried in this order at each position; together they cover any text
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # English contractions
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"  # a word, with the space or the punctuation mark before it
    r"|\p{N}{1,3}"  # digits in groups of three, from the left
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"  # punctuation, with the space before it and the line ends after it
    r"|\s*[\r\n]+"  # line ends, with the white space before them
    r"|\s+(?!\S)"  # white space; if text follows, all but its last character, which joins the next chunk
    r"|\s+"
)


def split(text: str) -> list[str]:
    """Text -> chunks that join to the text again: `split("I'm 1234 ") == ["I", "'m", " ", "123", "4", " "]`.

    The standard `re` cannot do this: it has no \\p{L}, and takes U+001C..U+001F for white space. `regex` agrees with
    tiktoken on every character that both know. A character that only one of them knows (tiktoken 0.14 has Unicode 16,
    regex 2026.11 has 18) may be split differently, so its ids may differ from tiktoken's.
    """
    import regex  # here, because encoding with tiktoken does not need it

    chunks: list[str] = regex.findall(PATTERN, text)
    return chunks


def merge(chunk: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """The bytes of a chunk -> token ids. Each single byte must have a rank.

    At first every byte is a part. Of all neighbouring parts that join to a token, the pair whose token has the lowest
    rank is joined, the leftmost if there are several. This is repeated until no two neighbours form a token. The
    candidates are kept in a heap, so n bytes take O(n log n) steps and not O(n^2): a chunk may be a megabyte long.
    """
    size = len(chunk)
    end = [*range(1, size + 1), size]  # the part that starts at i ends at end[i]; end[i] == i: no part starts there
    before = list(range(-1, size))  # the part before the one that starts at i starts at before[i]
    # A candidate is one number, rank * size + start, so that the order of the numbers is the order of merging.
    heap = [ranks[pair] * size + i for i in range(size - 1) if (pair := chunk[i : i + 2]) in ranks]
    heapify(heap)

    while heap:
        rank, start = divmod(heappop(heap), size)
        middle = end[start]
        stop = end[middle]
        if stop == middle or ranks.get(chunk[start:stop]) != rank:
            continue  # one of the two parts has been joined with another neighbour in the meantime
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
