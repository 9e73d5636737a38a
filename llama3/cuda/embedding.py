"""The embedding: one row of the matrix for each token (kernels/embedding.cu)."""

import numpy as np

from llama3.cuda.device import Array, Device
from llama3.cuda.launch import Kernel

EMBEDDING = Kernel("embedding.cu", "embedding")
THREADS = 256


def embedding(device: Device, tokens: Array, table: Array, out: Array) -> None:
    """tokens (T,) int32, each below vocab_size, table (vocab_size, dim) bfloat16 -> out (T, dim) float32."""
    (rows,), dim = tokens.shape, table.shape[1]
    assert out.shape == (rows, dim) and dim % 8 == 0, (tokens.shape, table.shape, out.shape)
    device.launch(EMBEDDING, (rows,), (THREADS,), [tokens, table, out, np.int32(dim)], dependent=True)
