"""A slot's keys and values on the device: read, put back and copied without a change, beside other slots."""

import numpy as np

from llama3.cuda.device import Device, bfloat16
from llama3.cuda.kv_cache import KVCache
from tests.tiny import tiny_config

CONFIG = tiny_config()


def test_a_slot_is_read_and_restored(device: Device) -> None:
    cache, rng = KVCache(device, CONFIG, 3, 12), np.random.default_rng(0)
    shape = (CONFIG.n_layers, CONFIG.n_kv_heads, 5, CONFIG.head_dim)
    k, v = (rng.standard_normal(shape).astype(bfloat16) for _ in range(2))
    cache.restore(1, k, v)
    cache.restore(2, v[:, :, :4], k[:, :, :4])
    cache.copy_prefix(1, 0, 3)
    assert cache.lengths == [3, 5, 4] and cache.dtype == k.dtype
    for slot, expected in ((0, (k[:, :, :3], v[:, :, :3])), (1, (k, v)), (2, (v[:, :, :4], k[:, :, :4]))):
        assert all(np.array_equal(found, array) for found, array in zip(cache.read(slot), expected))
