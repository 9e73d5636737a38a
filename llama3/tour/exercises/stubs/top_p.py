"""Page 9: top-p sampling. Replace the last line of `top_p`, then run: llama3 tour check 9"""

import numpy as np


def top_p(probabilities: np.ndarray, p: float) -> np.ndarray:
    """probabilities (vocab_size,), which sum to 1; 0 < p < 1 -> the probabilities to draw from, (vocab_size,).

    Take tokens from the most likely one on, of equal ones the lowest id first, until their probabilities together reach
    p; the token that crosses p still belongs to them. All others get 0. What is left is divided by its sum.
    """
    raise NotImplementedError
