"""A small Llama in torch with switches for faults, written apart from llama3/ so that it can be judged by it.

It computes in float32 (or the dtype that it is given), with a batch of one, from Hugging Face's tensors.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llama3.config import ModelConfig


class FaultyLlama:
    """`faults`: names of faults, and their values where they have one. layer: the fault sits there alone."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, np.ndarray], dtype: torch.dtype = torch.float32,
                 layer: int | None = None, **faults: Any):  # fmt: skip
        self.c, self.dtype, self.layer, self.faults = config, dtype, layer, faults
        self.w = {name: torch.tensor(np.asarray(a, np.float32)).to(dtype) for name, a in tensors.items()}

    def fault(self, name: str, layer: int | None) -> Any:
        return self.faults.get(name) if self.layer in (None, layer) else None

    def norm(self, x: Tensor, name: str, layer: int | None) -> Tensor:
        eps = self.c.norm_eps if self.fault("eps", layer) is None else self.faults["eps"]
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return wide.to(self.dtype) * self.w[name]

    def rope(self, x: Tensor, layer: int) -> Tensor:  # (heads, T, head_dim)
        c, T, d = self.c, x.shape[1], self.c.head_dim
        theta = self.fault("theta", layer) or c.rope_theta
        exact = torch.float32 if self.fault("float32_angles", layer) else torch.float64
        inverse = 1.0 / theta ** (torch.arange(0, d, 2, dtype=exact) / d)
        scaling = c.rope_scaling
        factor = self.fault("factor", layer) or (scaling and scaling.factor)
        if scaling and not self.fault("no_scaling", layer):
            out = []
            for f in inverse.tolist():
                length = 2 * math.pi / f
                low, high = scaling.low_freq_factor, scaling.high_freq_factor
                if length < scaling.original_max_seq_len / high:
                    out.append(f)
                elif length > scaling.original_max_seq_len / low:
                    out.append(f / factor)
                else:
                    smooth = (scaling.original_max_seq_len / length - low) / (high - low)
                    out.append((1 - smooth) * f / factor + smooth * f)
            inverse = torch.tensor(out, dtype=exact)
        positions = torch.arange(T, dtype=exact)
        if (start := self.fault("shift_from", layer)) is not None:
            positions[start:] += 1
        angles = torch.outer(positions, inverse)
        cos, sin = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
        if self.fault("pairs", layer):
            a, b = x[..., 0::2], x[..., 1::2]
            return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
        a, b = x[..., : d // 2], x[..., d // 2 :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def attention(self, x: Tensor, i: int) -> Tensor:
        c, T, at = self.c, len(x), f"model.layers.{i}.self_attn."
        wq, wk = self.w[at + "q_proj.weight"], self.w[at + "k_proj.weight"]
        if self.fault("meta_rows", i):  # rows in Meta's order, as if nobody had reordered them
            wq, wk = (w.view(-1, 2, c.head_dim // 2, c.dim).transpose(1, 2).reshape(w.shape) for w in (wq, wk))
        q = self.rope((x @ wq.T).view(T, c.n_heads, c.head_dim).transpose(0, 1), i)
        k = self.rope((x @ wk.T).view(T, c.n_kv_heads, c.head_dim).transpose(0, 1), i)
        v = (x @ self.w[at + "v_proj.weight"].T).view(T, c.n_kv_heads, c.head_dim).transpose(0, 1)
        if self.fault("reversed_keys", i):
            k = k.flip(0)
        group = c.n_heads // c.n_kv_heads
        if self.fault("tiled", i):
            k, v = k.repeat(group, 1, 1), v.repeat(group, 1, 1)
        else:
            k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        scores = q @ k.transpose(1, 2)
        if not self.fault("no_scale", i):
            scores = scores / math.sqrt(c.head_dim)
        keep = torch.ones(T, T, dtype=torch.bool).tril()
        if self.fault("mask_added", i):
            scores = scores + keep.to(self.dtype)
        elif self.fault("sees_next", i):
            scores = scores.masked_fill(~keep.roll(-1, 0) & ~keep, -math.inf) if T < 2 else scores.masked_fill(
                ~torch.ones(T, T, dtype=torch.bool).tril(1), -math.inf)  # fmt: skip
        elif not self.fault("no_mask", i):
            scores = scores.masked_fill(~keep, -math.inf)
        mixed = scores.float().softmax(-1).to(self.dtype) @ v
        return mixed.transpose(0, 1).reshape(T, -1) @ self.w[at + "o_proj.weight"].T

    def feed_forward(self, x: Tensor, i: int) -> Tensor:
        at = f"model.layers.{i}.mlp."
        gate, up = x @ self.w[at + "gate_proj.weight"].T, x @ self.w[at + "up_proj.weight"].T
        if self.fault("swapped", i):
            gate, up = up, gate
        return (torch.nn.functional.silu(gate) * up) @ self.w[at + "down_proj.weight"].T

    @torch.inference_mode()
    def forward(self, tokens: list[int]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Logits (T, vocab_size) and the activations of every block, as float32."""
        seen: dict[str, Tensor] = {}
        x = seen["tok_embeddings"] = self.w["model.embed_tokens.weight"][tokens]
        for i in range(self.c.n_layers):
            at = f"model.layers.{i}."
            a = seen[f"layers.{i}.attention"] = self.attention(self.norm(x, at + "input_layernorm.weight", i), i)
            x = a if self.fault("no_residual_1", i) else x + a
            f = self.feed_forward(self.norm(x, at + "post_attention_layernorm.weight", i), i)
            seen[f"layers.{i}.feed_forward"] = f
            x = seen[f"layers.{i}"] = f if self.fault("no_residual_2", i) else x + f
        x = seen["norm"] = self.norm(x, "model.norm.weight", None)
        embeddings = self.w["model.embed_tokens.weight"]
        output = embeddings if self.faults.get("tied") else self.w.get("lm_head.weight", embeddings)
        return (x @ output.T).float().numpy(), {name: value.float().numpy() for name, value in seen.items()}
