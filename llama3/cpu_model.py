"""The model as the engine runs it on the CPU: a forward pass, then a draw for each sequence that wants a token.

The counterpart for a GPU is `cuda/transformer.py`, which draws on the device.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llama3.config import ModelConfig
from llama3.errors import LogitsError
from llama3.model.batch import Batch
from llama3.model.compiled.jit import without_collections
from llama3.model.kv_cache import KVCache
from llama3.model.linear_choice import LinearChoice, prepare
from llama3.model.lora import Adapter
from llama3.model.threads import fork_waits
from llama3.model.transformer import Trace, Transformer
from llama3.model.weights import Weights
from llama3.sampler import Sample, SequenceSampler, sample_rows


class CpuModel(Transformer):
    """A `Transformer` that also draws tokens: the CPU's implementation of `engine.Model`."""

    prefill_chunk = 512  # tokens; a longer chunk makes no product faster, and each step would take seconds
    # Beside 8 requests that decode, 32 prompt rows double the time of a step of the 8B. A prompt then takes half as
    # long again as in steps of 512 rows, which would make the answers pause twelve times as long.
    mixed_prefill_chunk = 32

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        adapters: Mapping[str, Adapter] | None = None,
        linear: LinearChoice | None = None,
        rope_angles: str = "float64",
    ):
        self.linear = linear or LinearChoice("numpy", "nothing else was chosen")  # what multiplies by the weights
        with without_collections():
            super().__init__(config, prepare(weights, self.linear), adapters, rope_angles)
            if self.linear.kind != "numpy":
                self._use_compiled_attention()

    def _use_compiled_attention(self) -> None:
        self.mixed_prefill_chunk = 24  # 32 rows with those 8: more cost much more, on AMX as much as 64
        from llama3.model.compiled import attention_numba

        if self.config.head_dim % attention_numba.HEAD_STEP == 0:
            kernel = attention_numba.kernel(self.config.n_heads // self.config.n_kv_heads, self.config.head_dim)
            kernel.compile()  # now, and not in the first answer
            self.attention = attention_numba.attention

    def forward(self, batch: Batch, cache: KVCache, logit_rows: np.ndarray, trace: Trace | None = None) -> np.ndarray:
        with fork_waits():
            return super().forward(batch, cache, logit_rows, trace)

    def step(self, batch: Batch, cache: KVCache, samplers: Sequence[SequenceSampler | None]) -> "Pending":
        """Run the batch, then draw the next token of each sequence that has a sampler.

        samplers: one for each sequence; None while more of its prompt must be read before its first draw.
        """
        drawing = {i: sampler for i, sampler in enumerate(samplers) if sampler is not None}
        logits = self.forward(batch, cache, batch.last_rows[list(drawing)])  # (len(drawing), vocab_size)
        drawn = dict(zip(drawing, sample_rows(logits, list(drawing.values()))))
        return Pending([drawn.get(i) for i in range(len(samplers))])


@dataclass(frozen=True)
class Pending:
    """The result of a step. On the CPU it is complete at once; on a GPU `samples()` waits for it."""

    _samples: list[Sample | LogitsError | None]

    def samples(self) -> list[Sample | LogitsError | None]:
        """For each sequence of the batch: its token, the error if none could be drawn, or None if it had no sampler."""
        return self._samples

    def launch_next(self) -> None:
        """On the CPU the next step begins when the engine asks for it."""
