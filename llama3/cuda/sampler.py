"""The sampler on the GPU (kernels/sampler*.cu): it chooses the tokens that `llama3.sampler` would."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from llama3.cuda.device import Array, Device, Kernel
from llama3.errors import LogitsError
from llama3.sampler import Sample, SequenceSampler, bad_logit, no_token_left
from llama3.sampler_fast import logprobs

PART = 4096  # tokens a block, as in the kernels
MAX_TOP = 32  # most likely tokens that the GPU reports; for more the logits come to the host
N_PARAMS, N_RESULTS, MAX_BINS = 16, 80, 2048
INDEX, N_TOP = 8, 9  # of a row of parameters
TOKEN, STATUS, LOGPROB, TOP_IDS, TOP_LOGPROBS = 0, 1, 2, 3, 36  # of a row of results
DRAWN, BAD_LOGIT = 0, 1  # what STATUS may be


class SamplerState:
    """What the draws of up to `rows` rows need in device memory, for sequences in `slots` slots."""

    def __init__(self, device: Device, rows: int, slots: int, vocab_size: int):
        def zeros(shape: tuple[int, ...], dtype: type) -> Array:
            return device.upload(np.zeros(shape, dtype))

        n_parts = -(-vocab_size // PART)
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
        self.tickets = zeros((rows,), np.uint32)
        self.results = zeros((rows, N_RESULTS), np.int64)
        # What is known to be there: of each row the sampler, its index and its slot; of each slot whose history, and
        # how long. During a draw nothing is: one that is cut off may have stepped on, or not.
        self._rows: list[tuple[SequenceSampler, int, int]] = []
        self._past: list[tuple[SequenceSampler, int] | None] = [None] * slots
        self._drawing: list[tuple[SequenceSampler, int, int]] = []

    def set(self, device: Device, samplers: Sequence[SequenceSampler], slots: Sequence[int]) -> None:
        """Before a draw: bring to the device what it does not know. At first that is all; later, as a rule, nothing."""
        rows = [(sampler, sampler.index, slot) for sampler, slot in zip(samplers, slots)]
        known, self._rows = self._rows, []
        for sampler, index, slot in rows:
            if penalises(sampler) and self._past[slot] != (sampler, index):
                past = sampler.counts.astype(np.uint32) << 1 | sampler.seen
                device.upload(past.astype(np.uint32), into=self.history[slot])
            self._past[slot] = None
        masks = [mask_of(sampler) for sampler in samplers]
        for row, allowed in enumerate(masks):
            if allowed is not None:
                device.upload(packed(allowed), into=self.mask[row])
        if known != rows or any(sampler.mask for sampler in samplers):
            params = np.stack([as_params(s, slot, m is not None) for (s, _, slot), m in zip(rows, masks)])
            device.upload(params, into=self.params[: len(rows)])
        self._drawing = rows

    def drawn(self, samples: Sequence[Sample | LogitsError]) -> None:
        """The device has stepped on where there is a sample."""
        drew = [isinstance(sample, Sample) for sample in samples]
        self._rows = [(sampler, index + d, slot) for (sampler, index, slot), d in zip(self._drawing, drew)]
        for sampler, index, slot in self._rows:
            self._past[slot] = (sampler, index) if penalises(sampler) else None


def mask_of(sampler: SequenceSampler) -> np.ndarray | None:
    """One that fails is one sequence's trouble, not its neighbours': nothing is left to choose from."""
    try:
        return sampler.mask() if sampler.mask else None
    except LogitsError:
        return np.zeros(len(sampler.seen), bool)


def penalises(sampler: SequenceSampler) -> bool:
    p = sampler.params
    return p.repetition_penalty not in (0, 1) or p.frequency_penalty != 0 or p.presence_penalty != 0


def as_params(sampler: SequenceSampler, slot: int, has_mask: bool) -> np.ndarray:
    """-> (N_PARAMS,) int64, the numbers that are not whole as their float64's bits; the order is `Param`'s."""
    p = sampler.params
    top_p = 1.0 if p.top_p is None else p.top_p
    min_p = p.temperature * math.log(p.min_p) if p.min_p else -math.inf
    doubles = [p.temperature, top_p, 0, min_p, p.repetition_penalty or 1.0, p.frequency_penalty, p.presence_penalty]
    out = np.zeros(N_PARAMS, np.int64)
    out[:7] = np.array(doubles, np.float64).view(np.int64)
    out[2] = min(p.top_k or 0, 2**62)
    out[7:9] = np.array([sampler.seed, sampler.index], np.uint64).view(np.int64)
    out[9:13] = -1 if p.logprobs is None else min(p.logprobs, 2**31), has_mask, slot, penalises(sampler)
    return out


def packed(allowed: np.ndarray) -> np.ndarray:
    """(vocab_size,) bool -> (words,) uint32: bit i % 32 of word i // 32."""
    bits = np.packbits(allowed, bitorder="little")
    return np.pad(bits, (0, -len(bits) % 4)).view("<u4")


def sample(device: Device, logits: Array, state: SamplerState, tokens: Array, positions: Array) -> None:
    """Draw the next token of each row into tokens (T,) int32, and step on: its position (T,) int32 and all of `state`.

    logits (T, vocab_size) float32. Launches alone; of a row at position -1 nothing changes.
    """
    rows, vocab_size = logits.shape
    n_parts, s = -(-vocab_size // PART), state
    assert vocab_size == s.vocab_size and tokens.shape == positions.shape == (rows,), (logits.shape, tokens.shape)

    def launch(name: str, grid: tuple[int, ...], *args: Any, file: str = "sampler.cu") -> None:
        sizes = [np.int32(arg) if isinstance(arg, int) else arg for arg in args]
        device.launch(Kernel(file, name), grid, (256,), sizes, dependent=True)

    parts = n_parts, rows
    raw = s.raw_max, s.raw_sum
    launch(
        "sampler_adjust", parts,
        logits, s.params, s.mask, s.history, positions, s.adjusted, s.part_max, s.part_bad, *raw, vocab_size,
    )  # fmt: skip
    for which, values in enumerate((s.adjusted, s.adjusted, logits)):  # for top_k, top_p, the most likely
        for level in range(3):
            launch(
                "sampler_select", parts,
                values, s.params, positions, s.part_max, s.cuts, s.counts, s.weights, s.tickets,
                vocab_size, which, level, file="sampler_select.cu",
            )  # fmt: skip
    launch(
        "sampler_weigh", parts,
        s.adjusted, s.params, positions, s.part_max, s.cuts, s.part_sum, s.part_ties, vocab_size,
    )  # fmt: skip
    launch(
        "sampler_draw", (rows,),
        logits, s.adjusted, s.part_max, s.part_bad, *raw, s.part_sum, s.part_ties, s.cuts, s.params, s.history,
        tokens, positions, s.results, vocab_size, n_parts,
    )  # fmt: skip
    launch("sampler_top", (rows,), logits, s.params, positions, s.cuts, s.results, vocab_size, file="sampler_top.cu")


def results(device: Device, state: SamplerState, logits: Array, rows: int) -> list[Sample | LogitsError]:
    """Wait for the draws of the first `rows` rows; logits: those they were drawn from."""
    found = device.download(state.results[:rows])
    samples: list[Sample | LogitsError] = []
    for row, record in enumerate(found):
        n, token = state._drawing[row][0].params.logprobs, int(record[TOKEN])
        if record[STATUS] == BAD_LOGIT:
            samples.append(bad_logit(token, device.download(logits[row])[token]))
        elif record[STATUS] != DRAWN:
            samples.append(no_token_left())
        elif n is None:
            samples.append(Sample(token))
        elif n > MAX_TOP:
            samples.append(Sample(token, *logprobs(device.download(logits[row]), token, n)))
        else:
            numbers, n = record.view(np.float64), min(n, state.vocab_size)
            ids, logs = record[TOP_IDS : TOP_IDS + n].tolist(), numbers[TOP_LOGPROBS : TOP_LOGPROBS + n].tolist()
            samples.append(Sample(token, float(numbers[LOGPROB]), tuple(zip(ids, logs))))
    state.drawn(samples)
    return samples
