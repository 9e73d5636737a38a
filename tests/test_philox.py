"""Philox gives the known answers that its authors published, and its numbers are uniform and independent."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama3.philox import philox4x32, uniform

# The three lines "philox4x32 10" in kat_vectors of Random123, the library of the paper's authors: counter (4 words),
# key (2), result (4).
PUBLISHED = [
    "00000000 00000000 00000000 00000000 00000000 00000000 6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    "ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff 408f276d 41c83b0e a20bc7c6 6d5451fd",
    "243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0 d16cfe09 94fdcceb 5001e420 24126ea1",
]

uint64 = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize("line", PUBLISHED)
def test_published_known_answers(line):
    words = [int(word, 16) for word in line.split()]
    assert philox4x32(tuple(words[:4]), tuple(words[4:6])) == tuple(words[6:])


def test_the_first_number_of_seed_0_follows_from_the_published_words():
    assert uniform(0, 0) == (0xE169C58D6627E8D5 >> 11) / 2**53


@given(uint64, uint64)
def test_seed_and_index_enter_low_word_first(seed, index):
    words = philox4x32((index % 2**32, index // 2**32, 0, 0), (seed % 2**32, seed // 2**32))
    assert uniform(seed, index) == (words[1] * 2**32 + words[0]) // 2**11 / 2**53


@given(uint64, uint64)
def test_a_number_is_a_multiple_of_2_to_the_minus_53_below_1(seed, index):
    u = uniform(seed, index)
    assert 0 <= u < 1 and (u * 2**53).is_integer()


@given(uint64, uint64, st.integers(0, 63))
def test_every_bit_of_seed_and_index_matters(seed, index, bit):
    assert uniform(seed ^ 1 << bit, index) != uniform(seed, index)
    assert uniform(seed, index ^ 1 << bit) != uniform(seed, index)


@pytest.mark.parametrize("along", ["index", "seed"])
def test_numbers_are_spread_evenly_and_neighbours_are_independent(along):
    n, bins = 20_000, 16
    numbers = [uniform(7, i) if along == "index" else uniform(i, 7) for i in range(n)]
    counts = [[0] * bins for _ in range(bins)]
    for first, second in itertools.pairwise(numbers):
        counts[int(first * bins)][int(second * bins)] += 1
    expected = (n - 1) / bins**2
    chi_square = sum((count - expected) ** 2 / expected for row in counts for count in row)
    freedom = bins**2 - 1
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)
