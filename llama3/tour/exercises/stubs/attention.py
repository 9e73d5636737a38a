"""Page 6: one head of attention. Replace the last line of `attention`, then run: llama3 tour check 6"""

import numpy as np


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """q, k, v (T, head_dim) -> (T, head_dim).

        score[t, s]  = q[t] . k[s] / sqrt(head_dim),  or -inf if s > t: no position sees a later one
        weight[t, s] = exp(score[t, s]) / sum over s of exp(score[t, s])
        output[t]    = sum over s of weight[t, s] v[s]

    Scores may be large: take the largest of a row away from that row before exp, which changes no weight.
    """
    raise NotImplementedError
