"""The KV cache: slots are taken, shortened, copied and overwritten, and what is behind a length is never read."""

import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llama3.config import ModelConfig
from llama3.model.kv_cache import KVCache

CONFIG = ModelConfig(8, 2, 2, 1, 4, 8, 10, max_seq_len=12)
SLOTS, MAX_LEN = 3, 12


class CacheMachine(RuleBasedStateMachine):
    """Any order of append, truncate, copy, free and allocate, against a list of rows for each slot."""

    def __init__(self):
        super().__init__()
        self.cache = KVCache(CONFIG, SLOTS, MAX_LEN)
        self.rows: dict[int, list[float]] = {}  # slot -> the number that stands in each position
        self.next = 0.0

    @precondition(lambda self: len(self.rows) < SLOTS)
    @rule()
    def allocate(self):
        slot = self.cache.allocate()
        assert slot not in self.rows
        self.cache.truncate(slot, 0)
        self.rows[slot] = []

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), n=st.integers(1, 5))
    def append(self, data, n):
        slot = data.draw(st.sampled_from(sorted(self.rows)))
        n = min(n, MAX_LEN - len(self.rows[slot]))
        if n == 0:
            return
        new = [self.next + i for i in range(n)]
        self.next += n
        self.rows[slot] += new
        for layer in range(CONFIG.n_layers):
            k = np.broadcast_to(np.array(new, np.float32)[:, None, None] + layer / 2, (n, 1, 4))
            keys, values = self.cache.write(slot, layer, k, -k)
            assert keys.shape == values.shape == (1, len(self.rows[slot]), 4)
        self.cache.advance(slot, n)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def truncate(self, data):
        slot = data.draw(st.sampled_from(sorted(self.rows)))
        length = data.draw(st.integers(0, len(self.rows[slot])))
        self.cache.truncate(slot, length)
        del self.rows[slot][length:]

    @precondition(lambda self: len(self.rows) > 1)
    @rule(data=st.data())
    def copy_prefix(self, data):
        source, target = data.draw(st.permutations(sorted(self.rows)))[:2]
        length = data.draw(st.integers(0, len(self.rows[source])))
        self.cache.copy_prefix(source, target, length)
        self.rows[target] = self.rows[source][:length]

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def free(self, data):
        slot = data.draw(st.sampled_from(sorted(self.rows)))
        self.cache.free(slot)
        del self.rows[slot]

    @invariant()
    def every_slot_holds_its_own_rows(self):
        assert set(self.cache.free_slots) == set(range(SLOTS)) - self.rows.keys()
        for slot, rows in self.rows.items():
            assert self.cache.lengths[slot] == len(rows)
            for layer in range(CONFIG.n_layers):
                k = self.cache.k[slot, layer, 0, : len(rows)]
                assert np.array_equal(k, np.array(rows, np.float32)[:, None] + np.full(4, layer / 2, np.float32))
                assert np.array_equal(self.cache.v[slot, layer, 0, : len(rows)], -k)


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


BIG = ModelConfig(4096, 32, 32, 8, 128, 14336, 128256)


@pytest.mark.skipif(sys.platform != "linux", reason="the memory in use stands in Linux's /proc/self/status")
def test_memory_is_taken_only_as_it_is_written():
    before = resident()
    cache = KVCache(BIG, 1, 8192)  # 2.1 GB of address space
    assert cache.k.nbytes + cache.v.nbytes == 2 * 32 * 8 * 128 * 4 * 8192
    k = np.ones((16, 8, 128), np.float32)
    for layer in range(32):
        cache.write(0, layer, k, k)
    cache.advance(0, 16)
    written = sum(array.nbytes for array in cache.read(0))  # 4 MB; in pages of 2 MB they would take 1 GB
    assert written <= resident() - before < 2 * written
    del cache
    assert resident() - before < written  # it is given back


def test_more_than_the_address_space_is_an_error_and_no_crash():
    with pytest.raises(MemoryError, match=r"1125899\.91 GB for an array of the shape \(1048576, 32, 8, 8192, 128\)"):
        KVCache(BIG, 2**20, 8192)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_writes_to_a_copy():
    cache = KVCache(CONFIG, 1, MAX_LEN)
    cache.write(0, 0, np.ones((3, 1, 4), np.float32), np.ones((3, 1, 4), np.float32))
    child = os.fork()
    if not child:
        cache.k[:] = 2
        os._exit(0)
    os.waitpid(child, 0)
    assert cache.k[0, 0, 0, :3].min() == cache.k.max() == 1


def resident() -> int:
    """The memory that this process takes now, in bytes, without files."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024
