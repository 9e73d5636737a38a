"""Random numbers without a state: Philox4x32-10 turns a key and a counter into 128 random bits.

J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, section 3.3.
The n-th number of a seed does not depend on the n - 1 numbers before it. So a sequence draws the same tokens alone or
in a batch, on the CPU or on the GPU, in one run or resumed.
"""

ROUNDS = 10
WORD = 0xFFFFFFFF  # mask to 32 bits, because Python's integers do not wrap around
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85  # the golden ratio - 1 and sqrt(3) - 1, times 2**32


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Four random 32-bit words for a counter of four words and a key of two."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        p0 = MULTIPLIERS[0] * c0
        p1 = MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & WORD, (p0 >> 32) ^ c3 ^ k1, p0 & WORD
        k0 = (k0 + KEY_STEPS[0]) & WORD
        k1 = (k1 + KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3


def uniform(seed: int, index: int) -> float:
    """The random number for output token `index` under `seed`, a multiple of 2**-53 in [0, 1).

    seed, index: 0 to 2**64 - 1. The low word comes first: the key is (seed low, seed high), and the counter is (index
    low, index high, 0, 0). The first two words of the result are the low and the high half of a 64-bit integer. Its
    upper 53 bits, times 2**-53, are the number. That is exact in float64, so all implementations agree on every bit.
    """
    low, high, _, _ = philox4x32((index & WORD, index >> 32, 0, 0), (seed & WORD, seed >> 32))
    return ((high << 32 | low) >> 11) * 2.0**-53
