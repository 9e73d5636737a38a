"""On the AMX path the logits of a sequence are the same bits alone, in any batch, in any chunks, and behind a prefix.

The products are those of AMX where the CPU has it. Elsewhere a stand-in takes their place, which computes each row by
itself: that the kernels do so is for `tests/model/compiled/test_linear_amx.py`. So here everything else is tested:
attention, norms, RoPE, SwiGLU, the cache and the engine.
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from llama3 import Llama
from llama3.checkpoint import load_folder
from llama3.cpu_model import CpuModel
from llama3.engine import Engine, Request
from llama3.model.batch import Batch
from llama3.model.compiled import linear_amx
from llama3.model.linear_choice import LinearChoice
from llama3.sampling_params import SamplingParams
from tests.tiny import random_tensors, tiny_config, write_hf

CONFIG = tiny_config(dim=64, n_heads=4, n_kv_heads=2, head_dim=16, hidden_dim=96, vocab_size=256, max_seq_len=256)
LENGTH = 100
TRIALS = 2_000


def row_by_row(x: np.ndarray, matrices: Sequence[linear_amx.AmxMatrix]) -> list[np.ndarray]:
    return [np.stack([w.w.astype(np.float32) @ row for row in x]).reshape(len(x), len(w.w)) for w in matrices]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp("model"), CONFIG, random_tensors(CONFIG, dtype="bf16"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[CpuModel]:
    """The model as it runs on AMX."""
    if linear_amx.missing() is None:
        yield CpuModel(CONFIG, load_folder(folder).weights, linear=LinearChoice("amx", ""))
        return
    with (
        mock.patch.object(linear_amx.AmxMatrix, "__post_init__", lambda self: None),
        mock.patch.object(linear_amx.AmxMatrix, "products", staticmethod(row_by_row)),
    ):
        yield CpuModel(CONFIG, load_folder(folder).weights, linear=LinearChoice("amx", ""))


@pytest.fixture(scope="module")
def alone(model: CpuModel) -> list[tuple[list[int], np.ndarray]]:
    """Sequences, and their logits when each is read in one pass."""
    draw = random.Random(0)
    sequences = [[draw.randrange(CONFIG.vocab_size) for _ in range(LENGTH)] for _ in range(6)]
    shared = sequences[0][:40]
    sequences[1][:40] = shared  # so that a prefix can be reused
    return [(tokens, read(model, tokens)) for tokens in sequences]


def read(model: CpuModel, tokens: list[int]) -> np.ndarray:
    return model.forward(Batch.of([(0, tokens)]), model.new_cache(1, LENGTH), np.arange(len(tokens)))


def test_batches_chunks_and_reused_prefixes_do_not_change_a_bit(
    model: CpuModel, alone: list[tuple[list[int], np.ndarray]]
) -> None:
    """In each trial some sequences go on by some rows, after others were cut off, copied or started anew."""
    draw = random.Random(1)
    cache = model.new_cache(4, LENGTH)
    cache.k[:], cache.v[:] = np.nan, np.nan  # nobody may read what nobody has written
    held = [draw.randrange(6) for _ in range(4)]  # which sequence each slot holds
    for _ in range(TRIALS):
        for slot in range(4):
            chance = draw.random()
            if chance < 0.05 or cache.lengths[slot] == LENGTH:
                held[slot] = draw.randrange(6)
                cache.truncate(slot, 0)
            elif chance < 0.15:
                cache.truncate(slot, draw.randrange(cache.lengths[slot] + 1))
        source, target = draw.sample(range(4), 2)
        if draw.random() < 0.1 and {held[source], held[target]} <= {0, 1}:
            cache.copy_prefix(source, target, min(cache.lengths[source], 40))
        slots = draw.sample(range(4), draw.randint(1, 4))
        counts = [draw.choice([1, 1, draw.randint(1, 40)]) for _ in slots]
        rows = []
        for slot, count in zip(slots, counts):
            start = cache.lengths[slot]
            rows.append((slot, alone[held[slot]][0][start : start + count]))
        expected = np.concatenate(
            [alone[held[slot]][1][cache.lengths[slot] : cache.lengths[slot] + len(tokens)] for slot, tokens in rows]
        )
        logits = model.forward(Batch.of(rows), cache, np.arange(len(expected)))
        np.testing.assert_array_equal(logits, expected)


def test_the_same_seed_gives_the_same_text_beside_others_and_behind_any_prefix(model: CpuModel) -> None:
    """The probabilities, too, are the same to the last bit."""
    draw = random.Random(2)

    def request(number: int) -> Request:
        prompt = [number % 5 + 1] * 10 + [draw.randrange(CONFIG.vocab_size) for _ in range(20)]
        return Request(prompt, SamplingParams(seed=number, temperature=0.9, logprobs=2), max_tokens=12)

    requests = [request(number) for number in range(24)]
    together, expected = Engine(model, slots=5, max_len=LENGTH), []
    for one in requests:
        by_itself = Request(list(one.prompt), one.params, max_tokens=12)
        engine = Engine(model, slots=1, max_len=LENGTH)
        engine.submit(by_itself)
        while engine.busy:
            engine.step()
        expected.append(by_itself.samples)
        together.submit(one)
    while together.busy:
        together.step()
    assert [one.samples for one in requests] == expected


def test_numpy_is_close_to_it(folder: Path, alone: list[tuple[list[int], np.ndarray]]) -> None:
    plain = Llama.load(folder, linear="numpy")
    for tokens, logits in alone:
        expected = plain.logits(tokens)
        assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
