"""The sum over all ranks: its value, its bits, and what happens if a rank leaves."""

import numpy as np
import pytest

from llama3.tensor_parallel import group as group_module
from llama3.tensor_parallel.channel import FAILED, Closed, RankError
from llama3.tensor_parallel.group import Interrupted
from tests.tensor_parallel.in_threads import begin, groups_of, in_threads


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("shape", [(1, 5), (3, 7), (3, 70)])
def test_every_rank_gets_the_bits_of_the_sum_in_the_order_of_the_ranks(ranks, shape, monkeypatch):
    monkeypatch.setattr(group_module, "ROOM", 64)  # the largest array goes through the memory in pieces
    parts = np.random.RandomState(0).standard_normal((ranks, *shape)).astype(np.float32)
    expected = parts[0].copy()
    for part in parts[1:]:
        expected += part
    groups = groups_of(ranks)
    begin(groups)
    for found in in_threads(lambda rank, group: group.all_reduce(parts[rank]), groups):
        assert found.shape == shape and np.array_equal(found, expected)


def test_a_rank_that_is_gone_is_an_error_and_one_that_reports_an_error_is_quoted():
    x = np.ones((1, 4), np.float32)
    first, other, _ = groups_of(3)
    other.channel.close()
    with pytest.raises(RankError, match=r"^rank 1 is gone$"):
        first.all_reduce(x)
    first, other = groups_of(2)
    other.channel.send(FAILED, b"no memory")
    with pytest.raises(RankError, match=r"^rank 1: no memory$"):
        first.all_reduce(x)


def test_a_rank_ends_when_rank_0_is_gone():
    first, other = groups_of(2)
    first.channels[0].close()
    with pytest.raises(Closed):
        other.all_reduce(np.ones((1, 4), np.float32))


def test_a_step_that_rank_0_gives_up_leaves_nothing_behind():
    """The other rank has said that its part is there. That must not count for a sum of the next step."""
    groups = groups_of(2)
    first, x = groups[0], np.ones((1, 4), np.float32)

    def work(rank, group):
        group.step += 1
        if rank == 0:
            group.abandon()
        else:
            with pytest.raises(Interrupted):
                group.all_reduce(x)
        group.step += 1
        return group.all_reduce(x * (rank + 1))

    assert [found[0, 0] for found in in_threads(work, groups)] == [3, 3]
    first.interrupted = True

    def interrupted(rank, group):
        group.step += 1
        with pytest.raises(Interrupted):
            try:
                group.all_reduce(x)
            except Interrupted:
                if rank == 0:
                    group.abandon()
                raise

    in_threads(interrupted, groups)
