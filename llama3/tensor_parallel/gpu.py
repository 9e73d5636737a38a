"""The model on several GPUs, one process for each.

Rank 0 launches a step and tells the others which, and they launch the same. From then on the GPUs are on their own:
they add up their parts (NCCL), rank 0's GPU draws the tokens and hands them to the other GPUs, all of it inside the
graph. So a decode step needs nothing of the host, as on a single GPU.
"""

import pickle
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from llama3.checkpoint import Checkpoint
from llama3.cuda import numbers_of
from llama3.cuda.activations import Activations
from llama3.cuda.decoding import DecodingStep, pass_on, replay_or_capture
from llama3.cuda.device import Array, Device, Graph, open_device
from llama3.cuda.kv_cache import KVCache
from llama3.cuda.linear import MAX_GRAPH_ROWS, bucket
from llama3.cuda.memory import MULTIPLE, check_memory, check_shape
from llama3.cuda.nccl import MEMORY, Nccl, load_library, unique_id
from llama3.cuda.transformer import Pending, Transformer
from llama3.cuda.weights import upload_weights, uploaded_bytes
from llama3.errors import LogitsError, RequestError
from llama3.model.batch import Batch
from llama3.model.lora import Adapter
from llama3.model.split import check_split, split_adapters, split_config, split_weights
from llama3.model.transformer import Trace
from llama3.model.weights import Weights
from llama3.sampler import Sample, SequenceSampler
from llama3.tensor_parallel.caches import Mirrored, Mirrors, Notes, Step
from llama3.tensor_parallel.channel import COMMAND, READY, Channel, Closed, RankGone
from llama3.tensor_parallel.ranks import Ranks, Setup

Connect = Callable[[], Any]  # joins the other ranks -> an object with all_reduce, broadcast and abort, as `Nccl` is


class RankGroup:
    """`Group`: a rank's place among the others."""

    def __init__(self, rank: int, channels: Sequence[Channel] = ()):
        """channels: from rank 0 to each of the others."""
        self.rank, self.channels = rank, channels
        self.library: Any = None  # once all ranks are there

    def all_reduce(self, x: Array) -> None:
        self.library.all_reduce(x)

    def broadcast(self, x: Array) -> None:
        self.library.broadcast(x)

    def announce(self, kind: str, *what: Any) -> None:
        """See `Group`; what: a cache and a batch, and for a step in a graph whether its draw is greedy."""
        if not self.channels:
            return
        cache, batch, *more = what or (None, None)
        payload = pickle.dumps((kind, cache and cache.step(batch), *more))
        for rank, channel in enumerate(self.channels, 1):
            try:
                channel.send(COMMAND, payload)
            except Closed:
                raise RankGone(rank) from None


class RankCache(Mirrored, KVCache):
    """Rank 0's keys and values."""


class FirstRank(Transformer):
    """Rank 0, which the engine knows: `Transformer` with a part of the model, and the other ranks behind it."""

    def __init__(
        self,
        device: Device,
        checkpoint: Checkpoint,
        adapters: Mapping[str, Adapter],
        rope_angles: str,
        ranks: Ranks,
        report: Callable[[int, int], None] | None = None,
    ):
        """Waits until every other rank has its weights. `connect` comes next. Raises DeviceError."""
        self.ranks, self.notes = ranks, Notes()
        group, n = RankGroup(0, ranks.channels), len(ranks.channels) + 1
        part = uploaded_part(checkpoint, 0, n)
        arrays = [part.tok_embeddings, part.norm, *([] if part.output is part.tok_embeddings else [part.output])]
        total = sum(array.size for layer in part.layers for array in vars(layer).values())
        total += sum(array.size for array in arrays)
        weights = upload_weights(device, part, report and (lambda done: report(done, total)))
        mine = split_adapters(adapters, 0, n)
        super().__init__(device, split_config(checkpoint.config, n), weights, mine, rope_angles, group)
        self.ranks.wait_until_ready()

    def connect(self, connect: Connect) -> None:
        """Join the other ranks. Raises RankError if one ends instead."""
        joined: list[Any] = []
        done = threading.Event()

        def abort() -> None:
            for library in joined:
                library.abort()

        self.ranks.watch(abort)

        def work() -> None:
            try:
                joined.append(connect())
            except Exception as error:
                self.ranks.failed(error)
            done.set()

        threading.Thread(target=work, name="llama3-ranks-connect", daemon=True).start()
        while not done.wait(0.05) and not self.ranks.error:
            pass
        if self.ranks.error:
            raise self.ranks.error
        assert isinstance(self.group, RankGroup)
        self.group.library = joined[0]

    def new_cache(self, slots: int, max_len: int) -> KVCache:
        cache = RankCache(self.device, self.config, slots, max_len)
        cache.mirror(self.notes, slots)
        return cache

    def forward(self, batch: Batch, cache: KVCache, logit_rows: np.ndarray, trace: Trace | None = None) -> np.ndarray:
        """As `Transformer.forward`, on all GPUs. Raises RankError if a rank is gone, and RequestError for a trace."""
        if trace:
            raise RequestError(f"a trace needs all heads on one GPU, and this model is on {self.ranks.device}")
        return self.together(lambda: super(FirstRank, self).forward(batch, cache, logit_rows))

    def step(self, batch: Batch, cache: KVCache, samplers: Sequence[SequenceSampler | None]) -> Any:
        return RanksPending(self, self.together(lambda: super(FirstRank, self).step(batch, cache, samplers)))

    def together(self, launch: Callable[[], Any]) -> Any:
        """Launch something that every rank launches. If it fails in the middle, the ranks no longer fit together."""

        def work() -> Any:
            try:
                return launch()
            except Exception as error:
                library = self.group.library  # type: ignore[union-attr]  # a RankGroup
                raise self.ranks.failed(error, library.abort) from error

        found = self.ranks.run(work, lambda: None)  # Ctrl-C waits for the launches: the other ranks make them, too
        if self.ranks.error:  # what was waited for has been aborted
            raise self.ranks.error
        return found


class RanksPending:
    """`engine.Pending`: a step that all GPUs compute."""

    def __init__(self, model: FirstRank, pending: DecodingStep | Pending):
        self._model, self._pending = model, pending

    def samples(self) -> list[Sample | LogitsError | None]:
        samples = self._pending.samples()
        if self._model.ranks.error:
            raise self._model.ranks.error
        return list(samples)

    def launch_next(self) -> "RanksPending | None":
        following = self._model.together(self._pending.launch_next)
        return following and RanksPending(self._model, following)


class Follower:
    """Another rank: it launches what rank 0 announces."""

    def __init__(self, model: Transformer):
        self.model = model
        self.mirrors = Mirrors(model.new_cache)
        self._decodings: WeakKeyDictionary[KVCache, FollowerDecoding] = WeakKeyDictionary()
        self._last: Graph | None = None

    def run(self, payload: bytes) -> None:
        """Launch what a message of `RankGroup.announce` says."""
        kind, *what = pickle.loads(payload)
        if kind == "next":
            assert self._last
            self.model.device.replay(self._last)
            return
        step: Step = what[0]
        cache = self.mirrors.prepare(step)
        if kind == "run":
            self.model.run(step.batch, cache)
            return
        if cache not in self._decodings:
            self._decodings[cache] = FollowerDecoding(self.model, len(cache.lengths))
        self._last = self._decodings[cache].step(step, cache, greedy=what[1])


class FollowerDecoding:
    """The graphs of one cache, as `Decoding` has them, without logits and draws: the tokens come from rank 0's GPU."""

    def __init__(self, model: Transformer, slots: int):
        self.model = model
        self._activations = Activations.alloc(model.device, model.config, bucket(min(slots, MAX_GRAPH_ROWS)))
        self._graphs: dict[tuple[int, bool], Graph] = {}  # captured when rank 0 captures its own

    def step(self, step: Step, cache: KVCache, greedy: bool) -> Graph:
        device, group, tokens = self.model.device, self.model.group, step.batch.tokens.tolist()
        size = bucket(len(tokens))
        a, more = self._activations.first(size), size - len(tokens)
        rows = ([*tokens, *[0] * more], [*step.starts, *[-1] * more], [*step.batch.slots, *[0] * more])
        for array, values in zip((a.tokens, a.positions, a.slots), rows):
            device.upload(np.array(values, np.int32), into=array)

        def launch() -> None:
            assert group
            self.model.layers(a, cache, single_rows=size, prompt_tiles=None)
            pass_on(group, a)

        return replay_or_capture(device, self._graphs, (size, greedy), launch)


def uploaded_part(checkpoint: Checkpoint, rank: int, ranks: int) -> Weights:
    """One rank's part of the weights. Rank 0 alone has the output matrix, which the others do not upload."""
    part = split_weights(checkpoint.weights, rank, ranks)
    return part if rank == 0 else replace(part, output=part.tok_embeddings)


def ready(name: str, checkpoint: Checkpoint, rank: int, ranks: int, slots: int) -> Device:
    """The GPU, if this rank's part of the model can run on it. Raises a DeviceError that says what is missing."""
    device, config = open_device(name), split_config(checkpoint.config, ranks)
    check_shape(config)
    free, _ = device.memory()
    n_bytes = uploaded_bytes(uploaded_part(checkpoint, rank, ranks))
    check_memory(config, slots, config.max_seq_len, free - MEMORY, n_bytes)
    return device


def load_model(
    device: str,
    checkpoint: Checkpoint,
    slots: int,
    report: Callable[[int, int], None] | None = None,
    adapters: Mapping[str, Adapter] | None = None,
    rope_angles: str = "float64",
) -> FirstRank:
    """device: "cuda:0-3" for four GPUs; the rest as for `cuda.load.load_model`. Raises DeviceError."""
    (_, numbers), adapters = numbers_of(device), adapters or {}
    n = len(numbers)
    check_split(checkpoint.config, checkpoint.weights, device, n, MULTIPLE)
    library = load_library()
    opened = ready(f"cuda:{numbers[0]}", checkpoint, 0, n, slots)
    made = unique_id(library)
    setups = [
        Setup("cuda", rank, n, str(checkpoint.path.absolute()), {
            "device": f"cuda:{numbers[rank]}", "slots": slots, "adapters": split_adapters(adapters, rank, n),
            "rope_angles": rope_angles, "id": made,
        }, -1)
        for rank in range(1, n)
    ]  # fmt: skip
    model = FirstRank(opened, checkpoint, adapters, rope_angles, Ranks(device, setups, 1), report)
    model.connect(lambda: Nccl(library, opened, 0, n, made))
    return model


def follower(
    device: Device, checkpoint: Checkpoint, rank: int, ranks: int, adapters: Mapping[str, Adapter], rope_angles: str
) -> Follower:
    """Another rank's model. Its group is not connected yet."""
    weights = upload_weights(device, uploaded_part(checkpoint, rank, ranks))
    config, group = split_config(checkpoint.config, ranks), RankGroup(rank)
    return Follower(Transformer(device, config, weights, adapters, rope_angles, group))


def serve(setup: Setup, checkpoint: Checkpoint, channel: Channel) -> Follower:
    """The rank that this process is, not rank 0; its group is connected to all ranks."""
    m, n = setup.model, setup.ranks
    library, device = load_library(), ready(m["device"], checkpoint, setup.rank, n, m["slots"])
    rank = follower(device, checkpoint, setup.rank, n, m["adapters"], m["rope_angles"])
    channel.send(READY)
    group: Any = rank.model.group
    group.library = Nccl(library, device, setup.rank, n, m["id"])
    return rank
