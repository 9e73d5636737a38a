"""Measures how far two arrays are apart, row by row, in float64.

There is no error over a whole array, because it would hide one wrong row among a thousand right ones. If a row holds a
NaN or an infinity on either side, all its errors are NaN, so that no comparison with a limit accepts it by mistake.
"""

import numpy as np

TOP = 5
BLOCK_BYTES = 1 << 24  # converted to float64 at a time: 16 rows of Llama 3's vocabulary, never a whole array

ROW = np.dtype([("max_abs", "f8"), ("relative", "f8")])
LOGITS_ROW = np.dtype(
    [
        ("max_abs", "f8"),
        ("relative", "f8"),  # norm of the difference / norm of the reference
        ("kl", "f8"),  # KL divergence (reference || ours), in nats
        ("top1", "?"),  # whether the most likely token is the same; ties go to the lowest id
        ("top5", "i8"),  # how many of the reference's five most likely tokens are among our five
        ("ours", "i8", TOP),  # our five most likely ids, best first; -1 if the vocabulary is smaller
        ("ours_logits", "f4", TOP),
        ("reference", "i8", TOP),
        ("reference_logits", "f4", TOP),
    ]
)


def compare_rows(ours: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The errors of each row. ours, reference: (n, ...) -> (n,) ROW; what follows the first axis is one row.

    Attention scores of later positions are -inf. They are left out where both sides have them.
    """
    width = int(np.prod(reference.shape[1:]))
    ours, reference = ours.reshape(-1, width), reference.reshape(-1, width)
    found = np.empty(len(ours), ROW)
    for block in _blocks(ours):
        a, b = ours[block].astype(np.float64), reference[block].astype(np.float64)
        masked = np.isneginf(a) & np.isneginf(b)
        a[masked] = b[masked] = 0
        _write_errors(a, b, found[block])
    return found


def compare_logits(ours: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The errors and the most likely tokens of each row. ours, reference: (n, vocab_size) -> (n,) LOGITS_ROW."""
    found = np.empty(len(ours), LOGITS_ROW)
    for block in _blocks(ours):
        a, b, out = ours[block].astype(np.float64), reference[block].astype(np.float64), found[block]
        _write_errors(a, b, out)
        finite = np.isfinite(out["max_abs"])
        out["kl"] = np.where(finite, _kl(b, a), np.nan)
        for side, logits in (("ours", a), ("reference", b)):
            out[side] = [_top(row) for row in logits]
            out[side + "_logits"] = np.take_along_axis(logits, np.maximum(out[side], 0), axis=1)
        out["top1"] = finite & (out["ours"][:, 0] == out["reference"][:, 0])
        shared = (out["ours"][:, :, None] == out["reference"][:, None]) & (out["ours"][:, :, None] >= 0)
        out["top5"] = finite * shared.any(axis=2).sum(axis=1)
    return found


def _write_errors(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """Write max_abs and relative of each row into `out`. a, b: ours and the reference."""
    finite = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = a - b
        error, size = np.linalg.norm(difference, axis=1), np.linalg.norm(b, axis=1)
        out["max_abs"] = np.where(finite, np.abs(difference).max(axis=1), np.nan)
        # If the reference's row is all zeros, the error is 0 for zeros and infinite for anything else.
        out["relative"] = np.where(finite, np.where(error == 0, 0, error / size), np.nan)


def _kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """sum(softmax(p) * (log softmax(p) - log softmax(q))) of each row of logits; at least 0, whatever the rounding."""
    with np.errstate(invalid="ignore"):
        log_p, log_q = _log_softmax(p), _log_softmax(q)
        return np.maximum((np.exp(log_p) * (log_p - log_q)).sum(axis=1), 0)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def _top(row: np.ndarray) -> np.ndarray:
    """The ids of the TOP highest logits, best first, then -1 for none. Ties go to the lowest id. NaN counts as -inf."""
    row = np.where(np.isnan(row), -np.inf, row)
    k = min(TOP, len(row))
    candidates = np.flatnonzero(row >= np.partition(row, -k)[-k])
    ids = np.full(TOP, -1)
    ids[:k] = candidates[np.argsort(-row[candidates], kind="stable")][:k]
    return ids


def _blocks(rows: np.ndarray) -> list[slice]:
    n = max(1, BLOCK_BYTES // (8 * rows.shape[1]))
    return [slice(i, i + n) for i in range(0, len(rows), n)]
