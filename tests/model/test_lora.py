"""Adapters at run time against the same adapters merged into the weights, whatever shares the batch."""

from pathlib import Path

import numpy as np
import pytest

from llama3.checkpoint import load_adapter, load_folder
from llama3.model.batch import Batch
from llama3.model.lora import with_adapters
from llama3.model.transformer import Transformer
from tests.tiny import MODULES, merged, random_adapter, random_tensors, tiny_config, write_adapter, write_hf, write_meta

CONFIG = tiny_config()
TENSORS = random_tensors(CONFIG)
ADAPTERS = {  # name -> (its tensors, its fields, the scale that they make)
    "all": (random_adapter(CONFIG, 1), {}, 2.0),
    "high": (random_adapter(CONFIG, 2, rank=64), {"use_rslora": True, "lora_alpha": 8}, 1.0),
    "some": (random_adapter(CONFIG, 3, rank=1, modules=MODULES[::3]), {"lora_alpha": 0.5}, 0.5),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Transformer:
    folder = tmp_path_factory.mktemp("lora")
    checkpoint = load_folder(write_hf(folder / "base", CONFIG, TENSORS))
    adapters = {
        name: load_adapter(write_adapter(folder / name, tensors, **fields), CONFIG)
        for name, (tensors, fields, _) in ADAPTERS.items()
    }
    return Transformer(CONFIG, checkpoint.weights, adapters)


@pytest.fixture(scope="module")
def references(tmp_path_factory) -> dict[str | None, Transformer]:
    """For each adapter a model that has it in its weights."""
    folder, out = tmp_path_factory.mktemp("merged"), {}
    for name, (tensors, _, scale) in [*ADAPTERS.items(), (None, ({}, {}, 0))]:
        path = write_hf(folder / str(name), CONFIG, merged(TENSORS, tensors, scale))
        out[name] = Transformer(CONFIG, load_folder(path).weights)
    return out


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """The largest relative error of any row."""
    return float((np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)).max())


def logits(model: Transformer, sequences: list[tuple[list[int], str | None]], chunk: int) -> list[np.ndarray]:
    """All sequences in one batch, `chunk` tokens of each a step."""
    cache, out = model.new_cache(len(sequences), 64), [np.empty((0, CONFIG.vocab_size), np.float32)] * len(sequences)
    for begin in range(0, max(len(tokens) for tokens, _ in sequences), chunk):
        live = [i for i, (tokens, _) in enumerate(sequences) if begin < len(tokens)]
        batch = Batch.of(
            [(i, sequences[i][0][begin : begin + chunk]) for i in live],
            [sequences[i][1] if model.adapters else None for i in live],
        )
        found = model.forward(batch, cache, np.arange(len(batch.tokens)))
        for i, span in zip(live, batch.spans):
            out[i] = np.concatenate([out[i], found[span]])
    return out


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_rows_of_three_adapters_and_of_none_in_one_batch_are_as_with_merged_weights(model, references, chunk):
    dice = np.random.RandomState(4)
    names = ["all", None, "high", "some", "all", None]
    sequences = [(dice.randint(0, CONFIG.vocab_size, dice.randint(3, 40)).tolist(), name) for name in names]
    for (tokens, name), found in zip(sequences, logits(model, sequences, chunk)):
        (expected,) = logits(references[name], [(tokens, None)], 64)
        assert relative(found, expected) <= 1e-5
        (plain,) = logits(references[None], [(tokens, None)], 64)
        assert name is None or relative(found, plain) > 0.1  # it does something


def test_a_batch_without_adapters_uses_the_same_weight_arrays(model):
    layers = model.weights.layers
    assert with_adapters(layers, Batch.of([(0, [1, 2])]), model.adapters) is layers
    assert with_adapters(layers, Batch.of([(0, [1, 2]), (1, [3])], [None, None]), model.adapters) is layers


def test_the_neighbours_adapters_and_tokens_do_not_change_a_bit(model):
    """The number of rows is the same both times: BLAS rounds by that."""
    tokens = [3, 14, 15, 9, 2, 6]
    first, *_ = logits(model, [(tokens, "all"), (tokens, "all"), (tokens, None), (tokens, None)], 1)
    again, *_ = logits(model, [(tokens, "all"), (tokens[::-1], None), (tokens, "high"), (tokens, "all")], 1)
    assert np.array_equal(first, again)


def test_an_adapter_fits_the_same_model_in_metas_layout(model, tmp_path: Path):
    checkpoint = load_folder(write_meta(tmp_path, CONFIG, TENSORS))
    other = Transformer(CONFIG, checkpoint.weights, model.adapters)
    sequences = [([5, 6, 7, 8], "all"), ([9, 10], "high")]
    for a, b in zip(logits(model, sequences, 64), logits(other, sequences, 64)):
        assert np.array_equal(a, b)
