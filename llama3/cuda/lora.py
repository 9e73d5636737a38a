"""LoRA adapters on the GPU (kernels/lora.cu): stored side by side, so that one launch serves rows of all adapters."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llama3.config import ModelConfig
from llama3.cuda.device import Array, Device, bfloat16
from llama3.cuda.launch import Kernel
from llama3.model.batch import Batch
from llama3.model.lora import Adapter

DOWN = Kernel("lora.cu", "lora_down")
THREADS = 256


@dataclass(frozen=True)
class Adapters:
    names: tuple[str, ...]
    rank: int  # the highest rank, rounded up to a multiple of 8; matrices of a lower rank are padded with zeros
    layers: list[dict[str, tuple[Array, Array]]]  # by matrix: a (n, rank, in), b (n, out, rank) bfloat16


def upload_adapters(device: Device, config: ModelConfig, adapters: Mapping[str, Adapter]) -> Adapters:
    """Upload all adapters. If one changes a matrix that another does not change, the other gets zeros for it."""
    ranks = [len(part.a) for adapter in adapters.values() for layer in adapter for part in layer.values()]
    rank = -(-max(ranks, default=0) // 8) * 8
    layers: list[dict[str, tuple[Array, Array]]] = []
    for i in range(config.n_layers if adapters else 0):
        layers.append({})
        for name in sorted({name for adapter in adapters.values() for name in adapter[i]}):
            parts = [adapter[i].get(name) for adapter in adapters.values()]
            example = next(part for part in parts if part)  # for the shapes
            a = np.zeros((len(parts), rank, example.a.shape[1]), bfloat16)
            b = np.zeros((len(parts), len(example.b), rank), bfloat16)
            for n, part in enumerate(parts):
                if part:
                    a[n, : len(part.a)], b[n, :, : len(part.a)] = part.a, part.b
            layers[i][name] = device.upload(a), device.upload(b)
    return Adapters(tuple(adapters), rank, layers)


class Lora:
    """The adapters of one batch, as they are added to its products."""

    def __init__(self, device: Device, adapters: Adapters, batch: Batch):
        indices = [-1 if name is None else adapters.names.index(name) for name in batch.adapters]
        self.device, self.adapters = device, adapters
        # (T,) int32: the index of each row's adapter, -1 for none
        self.adapter_of_row = device.upload(np.repeat(np.array(indices, np.int32), batch.counts))
        self.down_out = device.alloc((len(batch.tokens), adapters.rank), np.float32)  # x @ a.T, scratch memory

    def add(self, i: int, widths: Mapping[str, int], x: Array, out: Array) -> None:
        """out (T, n) bfloat16 or float32 += x @ a.T @ b.T, with each row's adapter, in layer i; x (T, in) bfloat16.

        widths: the matrices whose products lie side by side in a row of out, each with its number of columns.
        """
        (rows, width), column = x.shape, 0
        assert sum(widths.values()) == out.shape[1] and len(out) == rows, (widths, out.shape)
        for name, n_out in widths.items():
            if name in self.adapters.layers[i]:
                a, b = self.adapters.layers[i][name]
                self._launch(a, b, x, out, column, width)
            column += n_out

    def _launch(self, a: Array, b: Array, x: Array, out: Array, column: int, width: int) -> None:
        rows, rank, n_out = len(x), np.int32(self.adapters.rank), b.shape[1]
        args = [a, x, self.adapter_of_row, self.down_out, rank, np.int32(width)]
        self.device.launch(DOWN, (self.adapters.rank // 8, rows), (THREADS,), args, dependent=True)
        up = Kernel("lora.cu", "lora_up_float" if out.dtype == np.float32 else "lora_up")
        first = out.reshape(-1)[column:]
        args = [b, self.down_out, self.adapter_of_row, first, rank, np.int32(n_out), np.int32(out.shape[1])]
        self.device.launch(up, (-(-n_out // THREADS), rows), (THREADS,), args, dependent=True)


def attention_widths(c: ModelConfig) -> dict[str, int]:
    """The columns of queries, keys and values in a row of their joint product."""
    return {"wq": c.n_heads * c.head_dim, "wk": c.n_kv_heads * c.head_dim, "wv": c.n_kv_heads * c.head_dim}
