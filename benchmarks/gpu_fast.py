"""A model written for speed in plain torch, as gpt-fast is: fused matrices, a static cache, no repeated heads.

It shares the weights of transformers' model. It has no torch modules, so that torch.compile sees one function of
tensors. Tensors that keep their address are marked as such. Otherwise torch.compile would copy all weights into its own
memory at each step, or, because a step changes the caches, would not use CUDA graphs at all and say so only in a log.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from llama3.config import ModelConfig

Attend = Callable[..., torch.Tensor]


def random_model(c: ModelConfig, torch_device: str) -> LlamaForCausalLM:
    """The model of transformers in bf16, with weights drawn by its own initialisation, and with joined matrices.

    model.joined holds for each layer the matrices (q, k, v) and (gate, up). The separate matrices are views of them, so
    that all implementations read the same memory, and only one copy of the weights exists.
    """
    config = LlamaConfig(
        hidden_size=c.dim, num_hidden_layers=c.n_layers, num_attention_heads=c.n_heads,
        num_key_value_heads=c.n_kv_heads, head_dim=c.head_dim, intermediate_size=c.hidden_dim,
        vocab_size=c.vocab_size, rms_norm_eps=c.norm_eps, max_position_embeddings=c.max_seq_len,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta}, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(torch_device):
            model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa").eval()
    finally:
        torch.set_default_dtype(torch.float32)
    model.joined = [
        (
            joined([layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]),
            joined([layer.mlp.gate_proj, layer.mlp.up_proj]),
        )
        for layer in model.model.layers
    ]
    return model


def joined(modules: list[torch.nn.Linear]) -> torch.Tensor:
    """One matrix of their rows; each module's weight becomes a view of it."""
    whole = torch.cat([module.weight for module in modules])
    row = 0
    for module in modules:
        n = len(module.weight)
        module.weight = torch.nn.Parameter(whole[row : row + n], requires_grad=False)
        row += n
    return whole


class Fast:
    def __init__(self, model: LlamaForCausalLM, c: ModelConfig, batch: int, cache_len: int):
        """The caches hold random numbers: memory that was never written is read faster."""
        self.c = c
        self.layers = [
            (
                layer.input_layernorm.weight, qkv, layer.self_attn.o_proj.weight,
                layer.post_attention_layernorm.weight, gate_up, layer.mlp.down_proj.weight,
            )
            for layer, (qkv, gate_up) in zip(model.model.layers, model.joined, strict=True)
        ]  # fmt: skip
        self.embedding, self.norm_weight = model.model.embed_tokens.weight, model.model.norm.weight
        self.head = model.lm_head.weight
        torch_device = self.head.device
        shape = (batch, c.n_kv_heads, cache_len, c.head_dim)
        self.cache = [
            tuple(torch.randn(shape, dtype=torch.bfloat16, device=torch_device) for _ in "kv") for _ in self.layers
        ]
        frequencies = c.rope_theta ** (-torch.arange(0, c.head_dim, 2, device=torch_device) / c.head_dim)
        self.positions = torch.arange(cache_len, device=torch_device)
        angles = torch.outer(self.positions.float(), frequencies).repeat(1, 2)
        self.cos, self.sin = angles.cos(), angles.sin()
        self.tokens = torch.randint(0, c.vocab_size, (batch, 1), device=torch_device)  # what the next step decodes
        self.position = torch.zeros(1, dtype=torch.int64, device=torch_device)  # where

    def keep_addresses(self) -> None:
        """Tell torch.compile that these tensors stay where they are."""
        weights = [weight for layer in self.layers for weight in layer]
        caches = [tensor for layer in self.cache for tensor in layer]
        others = [self.embedding, self.norm_weight, self.head, self.positions, self.cos, self.sin]
        for tensor in [*weights, *caches, *others, self.tokens, self.position]:
            torch._dynamo.mark_static_address(tensor)

    def step(self) -> None:
        """Decode self.tokens at self.position, then replace both. Nothing comes from the host: a graph can hold it."""
        c, batch = self.c, len(self.tokens)

        def attend(q, k, v, k_cache, v_cache):  # type: ignore[no-untyped-def]
            q = q.view(batch, c.n_kv_heads, c.n_heads // c.n_kv_heads, c.head_dim)
            scores = (q @ k_cache.transpose(-1, -2)).float() * c.head_dim**-0.5
            weights = scores.masked_fill(self.positions > self.position, -math.inf).softmax(-1).to(q.dtype)
            return (weights @ v_cache).view(batch, c.n_heads, 1, c.head_dim)

        self.tokens.copy_(self.forward(self.tokens, self.position, attend).argmax(-1))
        self.position.add_(1)

    def prefill(self, tokens: torch.Tensor, repeat: bool = False) -> torch.Tensor:
        """tokens (batch, T) -> the logits of the last one. repeat: give each query head a key head of its own."""
        group = self.c.n_heads // self.c.n_kv_heads

        def attend(q, k, v, k_cache, v_cache):  # type: ignore[no-untyped-def]
            if repeat:
                k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=not repeat)

        return self.forward(tokens, self.positions[: tokens.shape[1]], attend)

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        c, (batch, T) = self.c, tokens.shape
        x = F.embedding(tokens, self.embedding)
        cos, sin = self.cos[positions], self.sin[positions]
        for (norm1, qkv, o, norm2, gate_up, down), (k_cache, v_cache) in zip(self.layers, self.cache, strict=True):
            heads = F.linear(self.norm(x, norm1), qkv).view(batch, T, -1, c.head_dim).transpose(1, 2)
            q, k, v = heads.split([c.n_heads, c.n_kv_heads, c.n_kv_heads], 1)
            q, k = self.rotated(q, cos, sin), self.rotated(k, cos, sin)
            k_cache.index_copy_(2, positions, k)
            v_cache.index_copy_(2, positions, v)
            attention_out = attend(q, k, v, k_cache, v_cache)
            x = x + F.linear(attention_out.transpose(1, 2).reshape(batch, T, -1), o)
            gate, up = F.linear(self.norm(x, norm2), gate_up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, down)
        return F.linear(self.norm(x[:, -1:], self.norm_weight), self.head)

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.c.norm_eps)).to(x.dtype) * weight

    def rotated(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        first, second = x.float().chunk(2, -1)
        return (x.float() * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)


def graph_counts() -> dict[str, Any]:
    """Has torch.compile used CUDA graphs since the last torch._dynamo.reset()? How many it skipped, how many it has."""
    from torch._dynamo.utils import counters
    from torch._inductor.cudagraph_trees import get_manager

    manager = get_manager(0, create_if_none_exists=False)
    recorded = sum(map(len, manager.roots.values())) if manager else 0
    return {"cudagraph_skips": counters["inductor"]["cudagraph_skips"], "cudagraphs": recorded}
