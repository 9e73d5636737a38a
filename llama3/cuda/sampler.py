"""The sampler on the GPU (kernels/sampler*.cu): it chooses the same tokens as `llama3.sampler`."""

import math
from collections.abc import Iterator, Sequence
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
# The fields of a row's results. The log-probabilities of the most likely tokens begin one field later than `Result` of
# sampler.cuh says: its field TOP_LOGPROBS passes a number from sampler_draw to sampler_top.
TOKEN, STATUS, LOGPROB, TOP_IDS, TOP_LOGPROBS = 0, 1, 2, 3, 36
DRAWN, BAD_LOGIT = 0, 1  # values of STATUS


@dataclass(frozen=True)
class DrawRow:
    sampler: SequenceSampler
    index: int  # how many tokens the sequence had before the draw: the draw's place in its random numbers
    slot: int


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
        # What the host knows about the device's copies. During a draw it knows nothing, because an interrupted draw may
        # or may not have advanced them.
        self._device_rows: list[DrawRow] = []  # the rows that `params` describes
        # For each slot the sampler whose tokens `history` counts, and how many tokens it had. None: not known.
        self._device_history: list[tuple[SequenceSampler, int] | None] = [None] * slots
        self._drawing: list[DrawRow] = []  # the rows of the draw whose results have not been read

    def set(self, device: Device, samplers: Sequence[SequenceSampler], slots: Sequence[int]) -> None:
        """Prepare a draw: upload what the device does not have.

        The first draw of a sequence uploads everything about it. Later draws usually upload nothing.
        """
        rows = [DrawRow(sampler, sampler.index, slot) for sampler, slot in zip(samplers, slots)]
        known, self._device_rows = self._device_rows, []
        for row in rows:
            if penalises(row.sampler) and self._device_history[row.slot] != (row.sampler, row.index):
                history = row.sampler.counts.astype(np.uint32) << 1 | row.sampler.seen
                device.upload(history.astype(np.uint32), into=self.history[row.slot])
            self._device_history[row.slot] = None
        masks = [mask_of(sampler) for sampler in samplers]
        for i, allowed in enumerate(masks):
            if allowed is not None:
                device.upload(packed(allowed), into=self.mask[i])
        if known != rows or any(sampler.mask for sampler in samplers):
            params = np.stack([as_params(row, allowed is not None) for row, allowed in zip(rows, masks)])
            device.upload(params, into=self.params[: len(rows)])
        self._drawing = rows

    def read(self, device: Device, rows: int) -> list[tuple[SequenceSampler, np.ndarray]]:
        """Wait for the draws of the first `rows` rows; returns each row's sampler and results (N_RESULTS,) int64."""
        return list(zip([row.sampler for row in self._drawing], device.download(self.results[:rows])))

    def drawn(self, samples: Sequence[Sample | LogitsError]) -> None:
        """Record that a draw has ended: for each row with a sample, the device has advanced its own copies."""
        advanced = [isinstance(sample, Sample) for sample in samples]
        self._device_rows = [DrawRow(row.sampler, row.index + n, row.slot) for row, n in zip(self._drawing, advanced)]
        for row in self._device_rows:
            self._device_history[row.slot] = (row.sampler, row.index) if penalises(row.sampler) else None


def mask_of(sampler: SequenceSampler) -> np.ndarray | None:
    """The allowed tokens. A mask that raises fails only its own sequence: no token is left to choose from."""
    try:
        return sampler.mask() if sampler.mask else None
    except LogitsError:
        return np.zeros(len(sampler.seen), bool)


def penalises(sampler: SequenceSampler) -> bool:
    p = sampler.params
    return p.repetition_penalty not in (0, 1) or p.frequency_penalty != 0 or p.presence_penalty != 0


def as_params(row: DrawRow, has_mask: bool) -> np.ndarray:
    """-> (N_PARAMS,) int64, in the order of `Param` in sampler.cuh. Real numbers are the bits of their float64."""
    p = row.sampler.params
    top_p = 1.0 if p.top_p is None else p.top_p
    min_p = p.temperature * math.log(p.min_p) if p.min_p else -math.inf
    doubles = [p.temperature, top_p, 0, min_p, p.repetition_penalty or 1.0, p.frequency_penalty, p.presence_penalty]
    out = np.zeros(N_PARAMS, np.int64)
    out[:7] = np.array(doubles, np.float64).view(np.int64)
    out[2] = min(p.top_k or 0, 2**62)
    out[7:9] = np.array([row.sampler.seed, row.index], np.uint64).view(np.int64)
    n_top = -1 if p.logprobs is None else min(p.logprobs, 2**31)
    out[9:13] = n_top, has_mask, row.slot, penalises(row.sampler)
    return out


def packed(allowed: np.ndarray) -> np.ndarray:
    """(vocab_size,) bool -> (words,) uint32: token i is bit i % 32 of word i // 32."""
    bits = np.packbits(allowed, bitorder="little")
    return np.pad(bits, (0, -len(bits) % 4)).view("<u4")


def sample(device: Device, logits: Array, state: SamplerState, tokens: Array, positions: Array) -> None:
    """Draw the next token of each row into tokens (T,) int32, and advance the row's position (T,) int32 and `state`.

    logits (T, vocab_size) float32. It only launches kernels, so a graph can hold it. Padding rows, at position -1, do
    not change.
    """
    rows, vocab_size = logits.shape
    assert vocab_size == state.vocab_size and tokens.shape == positions.shape == (rows,), (logits.shape, tokens.shape)
    for kernel, grid, args in _launches(logits, state, tokens, positions):
        typed = [np.int32(arg) if isinstance(arg, int) else arg for arg in args]
        device.launch(kernel, grid, (THREADS,), typed, dependent=True)


def _launches(
    logits: Array, s: SamplerState, tokens: Array, positions: Array
) -> Iterator[tuple[Kernel, tuple[int, ...], list[Any]]]:
    """The kernels of a draw in their order, each with its grid and its arguments."""
    rows, vocab_size = logits.shape
    n_parts = -(-vocab_size // TOKENS_PER_BLOCK)
    parts, raw = (n_parts, rows), (s.raw_max, s.raw_sum)
    args = [logits, s.params, s.mask, s.history, positions, s.adjusted, s.part_max, s.part_bad, *raw, vocab_size]
    yield Kernel("sampler.cu", "sampler_adjust"), parts, args
    for which, values in enumerate((s.adjusted, s.adjusted, logits)):  # for top_k, top_p, the most likely tokens
        for level in range(3):
            args = [values, s.params, positions, s.part_max, s.cuts, s.counts, s.weights, s.arrivals]
            yield Kernel("sampler_select.cu", "sampler_select"), parts, [*args, vocab_size, which, level]
    args = [s.adjusted, s.params, positions, s.part_max, s.cuts, s.part_sum, s.part_ties, vocab_size]
    yield Kernel("sampler.cu", "sampler_weigh"), parts, args
    args = [logits, s.adjusted, s.part_max, s.part_bad, *raw, s.part_sum, s.part_ties, s.cuts, s.params, s.history]
    yield Kernel("sampler.cu", "sampler_draw"), (rows,), [*args, tokens, positions, s.results, vocab_size, n_parts]
    args = [logits, s.params, positions, s.cuts, s.results, vocab_size]
    yield Kernel("sampler_top.cu", "sampler_top"), (rows,), args


def results(device: Device, state: SamplerState, logits: Array, rows: int) -> list[Sample | LogitsError]:
    """Wait for the draws of the first `rows` rows. logits: the array that `sample` drew them from."""
    samples: list[Sample | LogitsError] = []
    for row, (sampler, record) in enumerate(state.read(device, rows)):
        n_top, token = sampler.params.logprobs, int(record[TOKEN])
        if record[STATUS] == BAD_LOGIT:
            samples.append(bad_logit(token, device.download(logits[row])[token]))
        elif record[STATUS] != DRAWN:
            samples.append(no_token_left())
        elif n_top is None:
            samples.append(Sample(token))
        elif n_top > MAX_TOP:
            samples.append(Sample(token, *logprobs(device.download(logits[row]), token, n_top)))
        else:
            samples.append(_sample_with_logprobs(record, min(n_top, state.vocab_size)))
    state.drawn(samples)
    return samples


def _sample_with_logprobs(record: np.ndarray, n_top: int) -> Sample:
    numbers = record.view(np.float64)
    ids = record[TOP_IDS : TOP_IDS + n_top].tolist()
    top_logprobs = numbers[TOP_LOGPROBS : TOP_LOGPROBS + n_top].tolist()
    return Sample(int(record[TOKEN]), float(numbers[LOGPROB]), tuple(zip(ids, top_logprobs)))
