"""Each scheme loads as the integers, scales and zeros that were written, and computes with them.

The files are written by hand (tests/quantised_files.py); tests/oracle/test_quantised.py has files of the schemes' own
libraries.
"""

from pathlib import Path

import numpy as np
import pytest

from llama3 import Llama, plain
from llama3.checkpoint import load_folder
from llama3.checkpoint.names import HUGGING_FACE, to_weights
from llama3.model.quantised import QuantisedMatrix
from tests.quantised_files import EXAMPLES, Example, write

NAMES = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
by_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)


@by_example
def test_every_entry_is_the_one_that_was_written(example: Example, tmp_path: Path):
    folder, tensors = write(tmp_path, example, output=True)
    found, expected = load_folder(folder).weights, to_weights(example.config, tensors, HUGGING_FACE)
    pairs = [(getattr(a, n), getattr(b, n)) for a, b in zip(found.layers, expected.layers) for n in NAMES]
    for matrix, array in [*pairs, (found.output, expected.output)]:
        assert isinstance(matrix, QuantisedMatrix) and matrix.shape == array.shape
        assert np.array_equal(matrix.rows(0, len(matrix)), array)
    assert np.array_equal(found.tok_embeddings, expected.tok_embeddings)


@by_example
def test_logits_are_those_of_the_plain_model_with_the_same_entries(example: Example, tmp_path: Path):
    folder, tensors = write(tmp_path, example, seed=1)
    llama, tokens = Llama.load(folder), list(range(3, 40))
    weights = to_weights(example.config, tensors, HUGGING_FACE)
    expected = plain.forward(tokens, example.config, weights)
    error = np.linalg.norm(llama.logits(tokens) - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < 5e-6
    assert np.allclose(plain.forward(tokens, example.config, llama.checkpoint.weights), expected)
