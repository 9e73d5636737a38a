"""An output matrix that neither the checkpoint nor its embedding table holds: tied where it should not be, or not tied.

The matrix is unknown, so it cannot be planted. But logits are the final norm times a matrix: either the file holds that
norm, and it is right where the logits are wrong, or there are more rows than columns. Then least squares finds the
matrix, and what no matrix explains is rounding.
"""

import numpy as np
from numpy import ndarray as Array

from llama3.parity.planted import Fault

SPARE = 1.25  # so many rows for each column, or the fit proves nothing


def another_output(tied: bool) -> Fault:
    """The fault in words: there is nothing to plant."""
    what = "the output matrix is neither the checkpoint's nor the embedding table"
    if tied:
        what = "the output matrix is not the embedding table, to which this model ties it"
    return Fault("tied_output", what, in_layers=False)


def unexplained(norm: Array, logits: Array) -> Array | None:
    """What is left of logits (rows, vocab_size) after the best matrix for the right final norm (rows, dim).

    It is scaled up to what the true matrix would leave. None if there are too few rows.
    """
    rows, dim = norm.shape
    if rows < SPARE * dim:
        return None
    basis, _ = np.linalg.qr(norm)  # (rows, dim)
    return (logits - basis @ (basis.T @ logits)) * np.sqrt(rows / (rows - dim))
