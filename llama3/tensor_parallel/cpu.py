"""The model on several processes of one CPU: the readable version of tensor parallelism.

It is not faster than one process, which uses all cores as well. It shows with NumPy what the GPUs do.
"""

import os
import pickle
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from llama3.checkpoint import Checkpoint
from llama3.config import ModelConfig
from llama3.cpu_model import CpuModel
from llama3.errors import RequestError
from llama3.model.batch import Batch
from llama3.model.kv_cache import KVCache
from llama3.model.linear_choice import LinearChoice
from llama3.model.lora import Adapter
from llama3.model.quantised import QuantisedMatrix
from llama3.model.split import BY_COLUMNS, check_split, split_adapters, split_config, split_weights
from llama3.model.summed import Group, SummedMatrix
from llama3.model.threads import cores_shared, thread_count
from llama3.model.transformer import Trace
from llama3.model.weights import LayerWeights, Weights
from llama3.tensor_parallel.caches import Mirrored, Mirrors, Notes, Step
from llama3.tensor_parallel.channel import COMMAND, Channel, RankError
from llama3.tensor_parallel.group import FirstGroup, Interrupted, OtherGroup, map_memory, open_memory
from llama3.tensor_parallel.ranks import Ranks, Setup

NO_ROWS = np.arange(0)


class RankModel(CpuModel):
    """One rank's part of the model: its heads and its feed-forward channels. Only the sums need the other ranks."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        adapters: Mapping[str, Adapter],
        rank: int,
        ranks: int,
        group: Group,
        linear: LinearChoice | None = None,
        rope_angles: str = "float64",
    ):
        """config, weights: of the whole model; adapters: this rank's part of them."""
        part = split_weights(weights, rank, ranks)
        layers = [
            replace(layer, **{name: copied(getattr(layer, name)) for name in BY_COLUMNS}) for layer in part.layers
        ]
        super().__init__(split_config(config, ranks), replace(part, layers=layers), adapters, linear, rope_angles)

        def summed(layer: LayerWeights) -> LayerWeights:
            changed: dict[str, Any] = {name: SummedMatrix(getattr(layer, name), group) for name in BY_COLUMNS}
            return replace(layer, **changed)

        self.weights = replace(self.weights, layers=[summed(layer) for layer in self.weights.layers])


def copied(w: np.ndarray | QuantisedMatrix) -> Any:
    """A part of columns, row after row in memory: a strided one is slow to read, and compiled products take none."""
    if isinstance(w, QuantisedMatrix):
        return replace(w, codes=np.ascontiguousarray(w.codes))
    return np.ascontiguousarray(w)


class RankCache(Mirrored, KVCache):
    """Rank 0's keys and values."""


class FirstRank(RankModel):
    """Rank 0, which the engine knows: it makes the others run each step with it, and draws the tokens."""

    def __init__(
        self,
        device: str,
        ranks: int,
        checkpoint: Checkpoint,
        adapters: Mapping[str, Adapter],
        linear: LinearChoice,
        rope_angles: str = "float64",
    ):
        """Raises DeviceError if the model cannot be shared out like this, or if a rank does not start."""
        check_split(checkpoint.config, checkpoint.weights, device, ranks)
        self.notes, self.n_ranks = Notes(), ranks
        memory = open_memory(ranks)
        try:
            setups = [
                Setup("cpu", rank, ranks, str(checkpoint.path.absolute()), {
                    "adapters": split_adapters(adapters, rank, ranks), "linear": linear, "rope_angles": rope_angles,
                }, memory)
                for rank in range(1, ranks)
            ]  # fmt: skip
            self.ranks = Ranks(device, setups, max(1, thread_count() // ranks))
            self.group = FirstGroup(self.ranks.channels, map_memory(memory, ranks))
            mine = split_adapters(adapters, 0, ranks)
            super().__init__(checkpoint.config, checkpoint.weights, mine, 0, ranks, self.group, linear, rope_angles)
            self.ranks.wait_until_ready()
        finally:
            os.close(memory)

    def new_cache(self, slots: int, max_len: int) -> KVCache:
        cache = RankCache(self.config, slots, max_len)
        cache.mirror(self.notes, slots)
        return cache

    def forward(self, batch: Batch, cache: KVCache, logit_rows: np.ndarray, trace: Trace | None = None) -> np.ndarray:
        """As `Transformer.forward`, in all ranks. Raises RankError if one is gone, and RequestError for a trace."""
        if trace:
            raise RequestError(f"a trace needs all heads in one process, and this model is on {self.ranks.device}")
        assert isinstance(cache, RankCache)
        self.group.interrupted = False
        return self.ranks.run(lambda: self._forward(batch, cache, logit_rows), self._interrupt)

    def _forward(self, batch: Batch, cache: RankCache, logit_rows: np.ndarray) -> np.ndarray:
        try:
            self.group.begin(COMMAND, pickle.dumps(cache.step(batch)))
            with cores_shared(self.n_ranks):
                return super().forward(batch, cache, logit_rows)
        except RankError as error:
            raise self.ranks.failed(error) from None
        except BaseException:
            self.group.abandon()
            raise

    def _interrupt(self) -> None:
        self.group.interrupted = True


def serve(setup: Setup, checkpoint: Checkpoint, channel: Channel) -> "RankServer":
    """Another rank's model, ready to follow rank 0."""
    group = OtherGroup(setup.rank, channel, map_memory(setup.memory, setup.ranks))
    config, weights = checkpoint.config, checkpoint.weights
    model = RankModel(config, weights, rank=setup.rank, ranks=setup.ranks, group=group, **setup.model)
    return RankServer(model, group)


class RankServer:
    """Runs the steps that rank 0 announces."""

    def __init__(self, model: RankModel, group: OtherGroup):
        self.model, self.group = model, group
        self.mirrors = Mirrors(model.new_cache)

    def run(self, payload: bytes) -> None:
        """One step."""
        self.group.step += 1
        step: Step = pickle.loads(payload)
        with suppress(Interrupted):  # the next step says how long the slots are
            self.model.forward(step.batch, self.mirrors.prepare(step), NO_ROWS)
