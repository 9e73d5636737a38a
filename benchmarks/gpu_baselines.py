"""What others do on the same GPU with the same weights, as gpu.py times it. torch and transformers; no download.

hf_eager            transformers, a growing cache: what most people run
hf_static           transformers with its static cache
hf_static_compile   the same under torch.compile, its CUDA graphs on: transformers' best
fast_graph          written for speed (fused matrices, static cache, no repeated heads), eager kernels, one graph
fast_compile        the same under torch.compile with the settings of gpt-fast: the baseline to beat
"""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from gpu_floor import shapes  # the files beside this one
from gpu_timing import RUNS, WARM, timed
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from llama3.config import ModelConfig

DECODERS = ("fast_compile", "fast_graph", "hf_static_compile", "hf_static", "hf_eager")


def random_model(c: ModelConfig, where: str) -> LlamaForCausalLM:
    """transformers' model in bf16, weights as its own initialisation draws them."""
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
        with torch.device(where):
            return LlamaForCausalLM._from_config(config, attn_implementation="sdpa").eval()
    finally:
        torch.set_default_dtype(torch.float32)


class Fast:
    """One forward pass without modules: q, k and v in one product, gate and up in one, a static cache."""

    def __init__(self, model: LlamaForCausalLM, c: ModelConfig, batch: int, room: int):
        self.c, layers = c, model.model.layers
        if not hasattr(model, "joined"):  # once for all sizes: 12 GB of an 8B
            model.joined = [
                (
                    torch.cat([getattr(layer.self_attn, name).weight for name in ("q_proj", "k_proj", "v_proj")]),
                    torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight]),
                )
                for layer in layers
            ]
        self.layers = [
            (
                layer.input_layernorm.weight, qkv, layer.self_attn.o_proj.weight,
                layer.post_attention_layernorm.weight, gate_up, layer.mlp.down_proj.weight,
            )
            for layer, (qkv, gate_up) in zip(layers, model.joined, strict=True)
        ]  # fmt: skip
        self.embedding, self.norm_weight = model.model.embed_tokens.weight, model.model.norm.weight
        self.head = model.lm_head.weight
        where = self.head.device
        shape = (batch, c.n_kv_heads, room, c.head_dim)
        self.cache = [tuple(torch.zeros(shape, dtype=torch.bfloat16, device=where) for _ in "kv") for _ in layers]
        frequencies = c.rope_theta ** (-torch.arange(0, c.head_dim, 2, device=where) / c.head_dim)
        self.positions = torch.arange(room, device=where)
        angles = torch.outer(self.positions.float(), frequencies).repeat(1, 2)
        self.cos, self.sin = angles.cos(), angles.sin()

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.c.norm_eps)).to(x.dtype) * weight

    def rotated(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        first, second = x.float().chunk(2, -1)
        return (x.float() * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, attend: Callable[..., Any]) -> torch.Tensor:
        c, (batch, T) = self.c, tokens.shape
        x = F.embedding(tokens, self.embedding)
        cos, sin = self.cos[positions], self.sin[positions]
        for (norm1, qkv, o, norm2, gate_up, down), (k_cache, v_cache) in zip(self.layers, self.cache, strict=True):
            heads = F.linear(self.norm(x, norm1), qkv).view(batch, T, -1, c.head_dim).transpose(1, 2)
            q, k, v = heads.split([c.n_heads, c.n_kv_heads, c.n_kv_heads], 1)
            q, k = self.rotated(q, cos, sin), self.rotated(k, cos, sin)
            k_cache.index_copy_(2, positions, k)
            v_cache.index_copy_(2, positions, v)
            mixed = attend(q, k, v, k_cache, v_cache)
            x = x + F.linear(mixed.transpose(1, 2).reshape(batch, T, -1), o)
            gate, up = F.linear(self.norm(x, norm2), gate_up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, down)
        return F.linear(self.norm(x[:, -1:], self.norm_weight), self.head)

    def decode(self, tokens: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the sequences stand is known on the device alone, so that a graph can hold the step."""
        c, batch = self.c, len(tokens)

        def attend(q, k, v, k_cache, v_cache):  # type: ignore[no-untyped-def]
            q = q.view(batch, c.n_kv_heads, c.n_heads // c.n_kv_heads, c.head_dim)
            scores = (q @ k_cache.transpose(-1, -2)).float() * c.head_dim**-0.5
            weights = scores.masked_fill(self.positions > position, -math.inf).softmax(-1).to(q.dtype)
            return (weights @ v_cache).view(batch, c.n_heads, 1, c.head_dim)

        return self.forward(tokens, position, attend).argmax(-1), position + 1

    def prefill(self, tokens: torch.Tensor) -> torch.Tensor:
        def attend(q, k, v, k_cache, v_cache):  # type: ignore[no-untyped-def]
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        return self.forward(tokens, self.positions[: tokens.shape[1]], attend)


class Baselines:
    def __init__(self, model: LlamaForCausalLM, c: ModelConfig):
        self.model, self.config, self.where = model, c, model.lm_head.weight.device
        self.on_gpu = self.where.type == "cuda"
        import torch._inductor.config as inductor

        inductor.coordinate_descent_tuning = True  # gpt-fast's settings
        inductor.triton.unique_kernel_names = True
        inductor.fx_graph_cache = True

    def timed(self, run: Callable[[], Any], steps: int = 1, runs: int = RUNS) -> float:
        return timed(self.sync, run, steps, runs)

    def sync(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def tokens(self, batch: int, T: int) -> torch.Tensor:
        return torch.randint(0, self.config.vocab_size, (batch, T), device=self.where)

    def decode(self, name: str, batch: int, context: int, steps: int) -> float:
        """Milliseconds a step of greedy decoding; static caches are as long as they must be and no longer."""
        prompt, first = self.tokens(batch, context), self.tokens(batch, 1)
        if name == "hf_eager":
            cache = DynamicCache(config=self.model.config)
            self.model(prompt, past_key_values=cache, logits_to_keep=1)

            def run() -> None:
                tokens = first
                for _ in range(steps):
                    tokens = self.model(tokens, past_key_values=cache, logits_to_keep=1).logits[:, -1:].argmax(-1)

            return self.timed(run, steps)
        room = -(-(context + (WARM + RUNS) * steps + 1) // 64) * 64
        if name.startswith("hf_static"):
            cache = StaticCache(config=self.model.config, max_cache_len=room)
            self.model(prompt, past_key_values=cache, logits_to_keep=1)
            step: Any = self.model.forward
            if name == "hf_static_compile":
                step = torch.compile(step, mode="reduce-overhead", fullgraph=True)

            def run() -> None:
                tokens = first
                for _ in range(steps):
                    out = step(input_ids=tokens, past_key_values=cache, logits_to_keep=1)
                    tokens = out.logits[:, -1:].argmax(-1).clone()

            return self.timed(run, steps)
        fast = Fast(self.model, self.config, batch, room)
        fast.prefill(prompt)
        start = torch.tensor([context], device=self.where)
        if name == "fast_compile":
            compiled = torch.compile(fast.decode, mode="reduce-overhead", fullgraph=True)

            def run() -> None:
                tokens, position = first, start
                for _ in range(steps):
                    tokens, position = compiled(tokens.clone(), position.clone())

            return self.timed(run, steps)
        if not self.on_gpu:
            return self.timed(lambda: [fast.decode(first, start) for _ in range(steps)], steps)
        tokens, position, graph = first.clone(), start.clone(), torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            fast.decode(tokens, position)
        self.sync()
        with torch.cuda.graph(graph):
            after, there = fast.decode(tokens, position)
            tokens.copy_(after)
            position.copy_(there)

        def run() -> None:
            position.fill_(context)
            for _ in range(steps):
                graph.replay()

        return self.timed(run, steps)

    def prefill(self, T: int) -> dict[str, float]:
        """Milliseconds for a prompt of T tokens: transformers, and the fast model with every kind of attention."""
        tokens = self.tokens(1, T)
        found = {"hf_sdpa": self.timed(lambda: self.model(tokens, logits_to_keep=1, use_cache=False))}
        fast = Fast(self.model, self.config, 1, max(T, 64))
        for backend in self.backends():
            with sdpa_kernel([backend]), suppress(RuntimeError):  # one that this GPU or this torch lacks
                found[f"fast_{backend.name.lower()}"] = self.timed(lambda: fast.prefill(tokens))
        compiled = torch.compile(fast.prefill, fullgraph=True)
        found["fast_compile"] = self.timed(lambda: compiled(tokens))
        torch._dynamo.reset()
        return found

    def backends(self) -> list[SDPBackend]:
        return [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION] if self.on_gpu else [SDPBackend.MATH]

    def attention(self, T: int) -> dict[str, float]:
        """Milliseconds of one layer's attention over a prompt of T tokens."""
        c, found = self.config, {}
        q, k, v = (
            torch.randn(1, heads, T, c.head_dim, device=self.where, dtype=torch.bfloat16)
            for heads in (c.n_heads, c.n_kv_heads, c.n_kv_heads)
        )
        for backend in self.backends():
            with sdpa_kernel([backend]), suppress(RuntimeError):
                found[backend.name.lower()] = self.timed(
                    lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
                )
        return found

    def product(self, name: str) -> float:
        """Milliseconds of a matrix times one row by cuBLAS, in a graph, over more matrices than a cache holds."""
        n_out, width = shapes(self.config)[name]
        n = max(2, int(4e8 / (n_out * width * 2)) + 1) if self.on_gpu else 2
        matrices = [torch.randn(n_out, width, device=self.where, dtype=torch.bfloat16) for _ in range(n)]
        x = torch.randn(1, width, device=self.where, dtype=torch.bfloat16)

        def run() -> None:
            for matrix in matrices:
                F.linear(x, matrix)

        if not self.on_gpu:
            return self.timed(run, n)
        run()
        self.sync()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return self.timed(graph.replay, n)

    def matmul_rate(self) -> float:
        """TFLOP/s of a large product in bf16: the limit of a prompt."""
        n = 256 if not self.on_gpu else 8192
        a, b = (torch.randn(n, n, device=self.where, dtype=torch.bfloat16) for _ in range(2))
        return 2 * n**3 / self.timed(lambda: a @ b, runs=7) / 1e9

    def pinned_rate(self) -> float:
        """GB/s from pinned memory to the device."""
        data = torch.empty((1 << 14) if not self.on_gpu else (1 << 30), dtype=torch.uint8, pin_memory=self.on_gpu)
        there = torch.empty_like(data, device=self.where)
        return data.numel() / self.timed(lambda: there.copy_(data, non_blocking=True), runs=5) / 1e6
