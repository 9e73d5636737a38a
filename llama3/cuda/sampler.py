"""The sampler on the GPU (kernels/sampler*.cu): it chooses the same tokens as `llama3.sampler`."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama3.cuda.device import Array, Device
from llama3.cuda.launch import Kernel
from llama3.errors import LogitsError
from llama3.sampler import Sample, SequenceSampler, bad_logit, no_token_left
from llama3.sampler_fast import logprobs

THREADS = 256
TOKENS_PER_BLOCK = 4096  # a part of the vocabulary, as in the kernels
MAX_TOP = 32  # how many of the most likely tokens the GPU can report; for more, the logits are copied to the host
N_PARAMS, N_RESULTS, MAX_BINS = 16, 80, 2048
# Columns of the parameters, as `Param` of sampler.cuh says.
TEMPERATURE, TOP_P, TOP_K, MIN_P, REPETITION, FREQUENCY, PRESENCE = range(7)
SEED, INDEX, N_TOP, HAS_MASK, SLOT, PENALISES = range(7, 13)
# The fields of a row's results. The log-probabilities of the most likely tokens begin one field later than `Result` of
# sampler.cuh says: its field TOP_LOGPROBS passes a number from sampler_draw to sampler_top.
TOKEN, STATUS, LOGPROB, TOP_IDS, TOP_LOGPROBS = 0, 1, 2, 3, 36
DRAWN, BAD_LOGIT = 0, 1  # values of STATUS
UNREAD = 2  # draws whose results may be on their way to the host at once: a step, and the step after it

ReadSamples = Callable[[], list[Sample | LogitsError]]  # waits for a draw, then returns what it has chosen


@dataclass
class Draw:
    """What the host knows of a draw: of which rows, and what they need. It may be repeated on the device."""

    samplers: Sequence[SequenceSampler]
    greedy: bool  # each row takes its most likely token, and reports at most the log-probability of this one
    may_repeat: bool  # the next draw needs neither a mask, nor does the host need the logits of this one
    penalised: list[int]  # the slots whose `history` the draw updates
    detailed: list[tuple[int, int]]  # the rows that report log-probabilities, and of how many of the likeliest tokens


class SamplerState:
    """The device memory for drawing up to `rows` tokens at once, for sequences in `slots` slots.

    A part is 4,096 tokens of the vocabulary, the share of one block.
    """

    def __init__(self, device: Device, rows: int, slots: int, vocab_size: int):
        def zeros(shape: tuple[int, ...], dtype: type) -> Array:
            return device.upload(np.zeros(shape, dtype))

        n_parts = -(-vocab_size // TOKENS_PER_BLOCK)
        self.vocab_size = vocab_size
        self.params = zeros((rows, N_PARAMS), np.int64)
        self.mask = zeros((rows, -(-vocab_size // 32)), np.uint32)
        self.history = zeros((slots, vocab_size), np.uint32)
        self.adjusted = device.alloc((rows, vocab_size), np.float32)
        self.part_max, self.raw_max = (device.alloc((rows, n_parts), np.float32) for _ in range(2))
        self.part_bad, self.part_ties = (device.alloc((rows, n_parts), np.int32) for _ in range(2))
        self.raw_sum, self.part_sum = (device.alloc((rows, n_parts), np.float64) for _ in range(2))
        self.cuts = zeros((rows, 3, 4), np.int64)
        self.counts, self.weights = zeros((rows, MAX_BINS), np.uint32), zeros((rows, MAX_BINS), np.uint64)
        self.arrivals = zeros((rows,), np.uint32)
        self.results = zeros((rows, N_RESULTS), np.int64)
        self._copies = [device.host_copy(self.results) for _ in range(UNREAD)]
        self._n_draws = 0
        # For each slot: its sampler and the sampler's parameters; the sampler whose tokens `history` counts, and how
        # many they are. None: not known.
        self._samplers: list[SequenceSampler | None] = [None] * slots
        self._params = np.zeros((slots, N_PARAMS), np.int64)
        self._counted: list[tuple[SequenceSampler, int] | None] = [None] * slots

    def prepare(self, device: Device, samplers: Sequence[SequenceSampler], slots: Sequence[int]) -> Draw:
        """Upload what a draw needs: the parameters of its rows, and masks and histories where there are any."""
        for sampler, slot in zip(samplers, slots):
            if self._samplers[slot] is not sampler:
                self._params[slot] = as_params(sampler, slot)
                self._samplers[slot] = sampler
        params = self._params[list(slots)]
        params[:, INDEX] = [sampler.index for sampler in samplers]
        for row, sampler in enumerate(samplers):
            if sampler.mask and (allowed := mask_of(sampler)) is not None:
                device.upload(packed(allowed), into=self.mask[row])
                params[row, HAS_MASK] = True
        device.upload(params, into=self.params[: len(params)])
        penalised = np.flatnonzero(params[:, PENALISES]).tolist()
        for row in penalised:
            self._prepare_history(device, samplers[row], slots[row])
        n_top = params[:, N_TOP]
        return Draw(
            samplers,
            greedy=not params[:, TEMPERATURE].any() and bool(n_top.max() <= 0),
            may_repeat=not any(sampler.mask for sampler in samplers) and bool(n_top.max() <= MAX_TOP),
            penalised=[slots[row] for row in penalised],
            detailed=[(row, n) for row, n in enumerate(n_top.tolist()) if n >= 0],
        )

    def _prepare_history(self, device: Device, sampler: SequenceSampler, slot: int) -> None:
        counted, self._counted[slot] = self._counted[slot], None  # not known, if an interrupt comes now
        if counted != (sampler, sampler.index):
            device.upload(history_of(sampler), into=self.history[slot])
        self._counted[slot] = sampler, sampler.index + 1  # the draw itself counts its token

    def repeat(self, draw: Draw) -> None:
        """Take note that the device draws once more for the same rows, from what it has updated by itself."""
        for slot in draw.penalised:
            if counted := self._counted[slot]:
                self._counted[slot] = counted[0], counted[1] + 1

    def collect(self, device: Device, draw: Draw, logits: Array) -> ReadSamples:
        """Queue a copy of a draw's results to the host. Returns the function that waits for them.

        logits: what the tokens were drawn from. The function must be called before the next `collect` but one.
        """
        copy = self._copies[self._n_draws % UNREAD]
        self._n_draws += 1
        number = self._n_draws
        copy.start(len(draw.samplers))

        def read_samples() -> list[Sample | LogitsError]:
            assert self._n_draws < number + UNREAD, "these results have been overwritten by later ones"
            return samples_of(device, draw, copy.wait(), logits)

        return read_samples


def mask_of(sampler: SequenceSampler) -> np.ndarray | None:
    """The allowed tokens. A mask that raises fails only its own sequence: no token is left to choose from."""
    try:
        return sampler.mask() if sampler.mask else None
    except LogitsError:
        return np.zeros(len(sampler.seen), bool)


def history_of(sampler: SequenceSampler) -> np.ndarray:
    """-> (vocab_size,) uint32, as sampler.cu defines it."""
    return (sampler.counts.astype(np.uint32) << 1 | sampler.seen).astype(np.uint32)


def as_params(sampler: SequenceSampler, slot: int) -> np.ndarray:
    """-> (N_PARAMS,) int64, without INDEX and HAS_MASK. Real numbers are the bits of their float64."""
    p = sampler.params
    top_p = 1.0 if p.top_p is None else p.top_p
    min_p = p.temperature * math.log(p.min_p) if p.min_p else -math.inf
    doubles = [p.temperature, top_p, 0, min_p, p.repetition_penalty or 1.0, p.frequency_penalty, p.presence_penalty]
    penalises = p.repetition_penalty not in (0, 1) or p.frequency_penalty != 0 or p.presence_penalty != 0
    out = np.zeros(N_PARAMS, np.int64)
    out[:SEED] = np.array(doubles, np.float64).view(np.int64)
    out[TOP_K] = min(p.top_k or 0, 2**62)
    out[SEED] = np.uint64(sampler.seed).view(np.int64)
    out[N_TOP] = -1 if p.logprobs is None else min(p.logprobs, 2**31)
    out[SLOT], out[PENALISES] = slot, penalises
    return out


def packed(allowed: np.ndarray) -> np.ndarray:
    """(vocab_size,) bool -> (words,) uint32: token i is bit i % 32 of word i // 32."""
    bits = np.packbits(allowed, bitorder="little")
    return np.pad(bits, (0, -len(bits) % 4)).view("<u4")


def sample(
    device: Device, logits: Array, state: SamplerState, tokens: Array, positions: Array, greedy: bool = False
) -> None:
    """Draw the next token of each row into tokens (T,) int32, and advance the row's position (T,) int32 and `state`.

    logits (T, vocab_size) float32. greedy: see `Draw`. It only launches kernels, so a graph can hold it.
    Padding rows, at position -1, do not change.
    """
    rows, vocab_size = logits.shape
    assert vocab_size == state.vocab_size and tokens.shape == positions.shape == (rows,), (logits.shape, tokens.shape)
    for kernel, grid, args in _launches(logits, state, tokens, positions, greedy):
        typed = [np.int32(arg) if isinstance(arg, int) else arg for arg in args]
        device.launch(kernel, grid, (THREADS,), typed, dependent=True)


def _launches(
    logits: Array, s: SamplerState, tokens: Array, positions: Array, greedy: bool
) -> Iterator[tuple[Kernel, tuple[int, ...], list[Any]]]:
    """The kernels of a draw in their order, each with its grid and its arguments: 2 if it is greedy, else 13."""
    rows, vocab_size = logits.shape
    n_parts = -(-vocab_size // TOKENS_PER_BLOCK)
    parts, raw = (n_parts, rows), (s.raw_max, s.raw_sum)
    args = [logits, s.params, s.mask, s.history, positions, s.adjusted, s.part_max, s.part_bad, *raw, vocab_size]
    yield Kernel("sampler.cu", "sampler_adjust"), parts, args
    if not greedy:
        for which, values in enumerate((s.adjusted, s.adjusted, logits)):  # for top_k, top_p, the most likely tokens
            for level in range(3):
                args = [values, s.params, positions, s.part_max, s.cuts, s.counts, s.weights, s.arrivals]
                yield Kernel("sampler_select.cu", "sampler_select"), parts, [*args, vocab_size, which, level]
        args = [s.adjusted, s.params, positions, s.part_max, s.cuts, s.part_sum, s.part_ties, vocab_size]
        yield Kernel("sampler.cu", "sampler_weigh"), parts, args
    args = [logits, s.adjusted, s.part_max, s.part_bad, *raw, s.part_sum, s.part_ties, s.cuts, s.params, s.history]
    yield Kernel("sampler.cu", "sampler_draw"), (rows,), [*args, tokens, positions, s.results, vocab_size, n_parts]
    if not greedy:
        args = [logits, s.params, positions, s.cuts, s.results, vocab_size]
        yield Kernel("sampler_top.cu", "sampler_top"), (rows,), args


def samples_of(device: Device, draw: Draw, records: np.ndarray, logits: Array) -> list[Sample | LogitsError]:
    """What a draw has chosen, from its results (rows, N_RESULTS) int64. logits: see `SamplerState.collect`."""
    tokens, numbers = records[:, TOKEN].tolist(), records.view(np.float64)
    samples: list[Sample | LogitsError] = list(map(Sample, tokens))
    failed = np.flatnonzero(records[:, STATUS] != DRAWN).tolist()
    if draw.detailed:
        width = min(MAX_TOP, logits.shape[1], max(n_top for _, n_top in draw.detailed))
        ids = records[:, TOP_IDS : TOP_IDS + width].tolist()
        top_logprobs = numbers[:, TOP_LOGPROBS : TOP_LOGPROBS + width].tolist()
        of_tokens = numbers[:, LOGPROB].tolist()
        for row, n_top in draw.detailed:
            if n_top <= MAX_TOP:
                samples[row] = Sample(tokens[row], of_tokens[row], tuple(zip(ids[row][:n_top], top_logprobs[row])))
            elif row not in failed:
                samples[row] = Sample(tokens[row], *logprobs(device.download(logits[row]), tokens[row], n_top))
    for row in failed:
        bad = records[row, STATUS] == BAD_LOGIT
        samples[row] = bad_logit(tokens[row], numbers[row, LOGPROB]) if bad else no_token_left()
    return samples
