"""A small Llama in torch with switches for faults, written apart from llama3/ so that it can be judged by it.

It computes in float32 (or the dtype that it is given), one sequence at a time, from Hugging Face's tensors. Two
switches are no faults: `other_sums` adds up products in another order. `fused` rounds less often, as fused kernels do.
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
        self.wide = torch.promote_types(dtype, torch.float32)  # norms and softmax are computed in it
        self.w = {name: torch.tensor(np.asarray(a, np.float32)).to(dtype) for name, a in tensors.items()}

    def fault(self, name: str, layer: int | None) -> Any:
        return self.faults.get(name) if self.layer in (None, layer) else None

    def norm(self, x: Tensor, name: str, layer: int | None) -> Tensor:
        eps = self.c.norm_eps if self.fault("eps", layer) is None else self.faults["eps"]
        wide = x.to(self.wide)
        if self.fault("eps_outside", layer):
            wide = wide / (wide.square().mean(-1, keepdim=True).sqrt() + eps)
        else:
            wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        if self.fault("cast_order", layer):
            return (wide * self.w[name].to(self.wide)).to(self.dtype)
        return wide.to(self.dtype) * self.w[name]

    def linear(self, x: Tensor, w: Tensor) -> Tensor:
        if not self.faults.get("other_sums"):
            return x @ w.T
        parts = [x[:, i : i + 12].float() @ w[:, i : i + 12].float().T for i in range(0, x.shape[1], 12)]
        return sum(reversed(parts), torch.zeros(1)).to(x.dtype)

    def rope(self, x: Tensor, layer: int) -> Tensor:  # (heads, T, head_dim)
        c, T, d = self.c, x.shape[1], self.c.head_dim
        theta = self.fault("theta", layer) or c.rope_theta
        exact = torch.float32 if self.fault("float32_angles", layer) else torch.float64
        inverse = 1.0 / theta ** (torch.arange(0, d, 2, dtype=exact) / d)
        scaling = self.fault("adds_scaling", layer) or c.rope_scaling
        factor = self.fault("factor", layer) or (scaling and scaling.factor)
        linear = self.fault("linear_scaling", layer)  # in place of the other kind
        if scaling and not linear and not self.fault("no_scaling", layer):
            length, original = 2 * math.pi / inverse, scaling.original_max_seq_len  # positions a turn
            low, high = scaling.low_freq_factor, scaling.high_freq_factor
            smooth = (original / length - low) / (high - low)
            blend = (1 - smooth) * inverse / factor + smooth * inverse
            fast = torch.where(length < original / high, inverse, blend)
            inverse = torch.where(length > original / low, inverse / factor, fast)
        inverse = inverse / (linear or 1)
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
        q = self.rope(self.linear(x, wq).view(T, c.n_heads, c.head_dim).transpose(0, 1), i)
        k = self.rope(self.linear(x, wk).view(T, c.n_kv_heads, c.head_dim).transpose(0, 1), i)
        v = self.linear(x, self.w[at + "v_proj.weight"]).view(T, c.n_kv_heads, c.head_dim).transpose(0, 1)
        if self.fault("reversed_keys", i):
            k = k.flip(0)
        group = c.n_heads // c.n_kv_heads
        if self.fault("tiled", i):
            k, v = k.repeat(group, 1, 1), v.repeat(group, 1, 1)
        else:
            k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        if self.faults.get("fused"):
            q, k, v = q.to(self.wide), k.to(self.wide), v.to(self.wide)
        scores = q @ k.transpose(1, 2)
        if not self.fault("no_scale", i):
            scores = scores / math.sqrt(c.head_dim)
        keep = torch.ones(T, T, dtype=torch.bool).tril()
        if self.fault("mask_added", i):
            scores = scores + keep.to(scores.dtype)
        elif self.fault("sees_next", i):
            scores = scores.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(1), -math.inf)
        elif not self.fault("no_mask", i):
            scores = scores.masked_fill(~keep, -math.inf)
        mixed = (scores.to(self.wide).softmax(-1).to(v.dtype) @ v).to(self.dtype)
        return self.linear(mixed.transpose(0, 1).reshape(T, -1), self.w[at + "o_proj.weight"])

    def feed_forward(self, x: Tensor, i: int) -> Tensor:
        at = f"model.layers.{i}.mlp."
        gate, up = self.linear(x, self.w[at + "gate_proj.weight"]), self.linear(x, self.w[at + "up_proj.weight"])
        if self.fault("swapped", i):
            gate, up = up, gate
        if self.faults.get("fused"):
            gate, up = gate.to(self.wide), up.to(self.wide)
        h = (torch.nn.functional.silu(gate) * up).to(self.dtype)
        return self.linear(h, self.w[at + "down_proj.weight"])

    @torch.inference_mode()
    def forward(self, tokens: list[int]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Logits (T, vocab_size) in float32, or float64 if it computes in that, and the activations of every block.

        With `drops_bos` there is a row less; with `adds_bos` the first of the T + 1 rows is left out.
        """
        tokens = [self.faults["adds_bos"], *tokens] if "adds_bos" in self.faults else tokens
        tokens = tokens[1:] if self.faults.get("drops_bos") else tokens
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
        if self.faults.get("untied"):  # a matrix that the checkpoint does not hold
            output = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(self.dtype)
        logits = self.linear(x, output)[1 if "adds_bos" in self.faults else 0 :]
        return logits.to(self.wide).numpy(), {name: value.float().numpy() for name, value in seen.items()}
