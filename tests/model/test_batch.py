"""A batch's rows, slots and counts: what it refuses, and where each sequence's rows are."""

import numpy as np
import pytest

from llama3.model.batch import Batch


def test_the_rows_of_several_sequences_lie_end_to_end():
    batch = Batch.of([(4, [7, 8, 9]), (0, [5]), (2, np.array([1, 2]))])
    assert batch.tokens.tolist() == [7, 8, 9, 5, 1, 2] and batch.tokens.dtype == np.int32
    assert batch.slots == (4, 0, 2) and batch.counts == (3, 1, 2)
    assert batch.last_rows.tolist() == [2, 3, 5]
    assert [batch.tokens[span].tolist() for span in batch.spans] == [[7, 8, 9], [5], [1, 2]]


@pytest.mark.parametrize(
    "tokens, slots, counts",
    [
        (np.zeros(2, np.int64), (0,), (2,)),
        (np.zeros(3, np.int32), (0,), (2,)),
        (np.zeros(2, np.int32), (0, 0), (1, 1)),
        (np.zeros(2, np.int32), (0, 1), (2, 0)),
    ],
    ids=["dtype", "counts do not add up", "slot twice", "sequence without rows"],
)
def test_a_batch_that_does_not_fit_together_is_refused(tokens, slots, counts):
    with pytest.raises(AssertionError):
        Batch(tokens, slots, counts)
