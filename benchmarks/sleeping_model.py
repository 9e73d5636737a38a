"""A model whose step takes a fixed time and computes nothing: what is left of a run on it is the host's work."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from llama3 import Llama
from llama3.config import ModelConfig
from llama3.cpu_model import Pending
from llama3.engine import Engine
from llama3.model.batch import Batch
from llama3.model.kv_cache import KVCache
from llama3.sampler import Sample, SequenceSampler


class SleepingModel:
    """Counts its steps and the tokens that it has drawn, and adds up the seconds that it has slept."""

    prefill_chunk = 512
    mixed_prefill_chunk = 512
    token = ord("a")  # what each draw gives: a letter in the demo's vocabulary

    def __init__(self, config: ModelConfig, seconds: float):
        self.config, self.seconds = config, seconds
        self.steps = self.tokens = 0
        self.slept = 0.0

    def new_cache(self, slots: int, max_len: int) -> KVCache:
        return KVCache(self.config, slots, max_len)

    def step(self, batch: Batch, cache: KVCache, samplers: Sequence[SequenceSampler | None]) -> Pending:
        start = time.perf_counter()
        time.sleep(self.seconds)
        self.slept += time.perf_counter() - start
        for slot, n in zip(batch.slots, batch.counts):
            cache.advance(slot, n)
        drawn = [None if sampler is None else Sample(self.token) for sampler in samplers]
        self.steps, self.tokens = self.steps + 1, self.tokens + sum(sample is not None for sample in drawn)
        return Pending(drawn)


def sleeping_llama(slots: int, seconds: float) -> tuple[Llama, SleepingModel]:
    """The demo with its tokenizer, and with a SleepingModel in place of its own."""
    llama = Llama.load(slots=slots, device="cpu")
    model = SleepingModel(llama.config, seconds)
    llama._engine = Engine(model, slots)
    return llama, model
