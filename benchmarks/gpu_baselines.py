"""Other implementations on the same GPU with the same weights, for gpu.py. They need torch and transformers.

hf_eager            transformers with a growing cache: what most people run
hf_static           transformers with its static cache
hf_static_compile   the same under torch.compile with CUDA graphs: the fastest that transformers offers
fast_graph          written for speed (fused matrices, static cache, no repeated heads): eager kernels in one graph
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


def random_model(c: ModelConfig, torch_device: str) -> LlamaForCausalLM:
    """The model of transformers in bf16, with weights drawn by its own initialisation."""
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
            return LlamaForCausalLM._from_config(config, attn_implementation="sdpa").eval()
    finally:
        torch.set_default_dtype(torch.float32)


class Fast:
    """A forward pass without torch modules: one product for q, k and v, one for gate and up, a static cache."""

    def __init__(self, model: LlamaForCausalLM, c: ModelConfig, batch: int, cache_len: int):
        self.c, layers = c, model.model.layers
        if not hasattr(model, "joined"):  # computed once, for all cache sizes: 12 GB for the 8B model
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
        torch_device = self.head.device
        shape = (batch, c.n_kv_heads, cache_len, c.head_dim)
        self.cache = [
            tuple(torch.zeros(shape, dtype=torch.bfloat16, device=torch_device) for _ in "kv") for _ in layers
        ]
        frequencies = c.rope_theta ** (-torch.arange(0, c.head_dim, 2, device=torch_device) / c.head_dim)
        self.positions = torch.arange(cache_len, device=torch_device)
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
            attention_out = attend(q, k, v, k_cache, v_cache)
            x = x + F.linear(attention_out.transpose(1, 2).reshape(batch, T, -1), o)
            gate, up = F.linear(self.norm(x, norm2), gate_up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, down)
        return F.linear(self.norm(x[:, -1:], self.norm_weight), self.head)

    def decode(self, tokens: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The position is only read on the device, so that a graph can hold the step."""
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
        self.model, self.config, self.torch_device = model, c, model.lm_head.weight.device
        self.on_gpu = self.torch_device.type == "cuda"
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
        return torch.randint(0, self.config.vocab_size, (batch, T), device=self.torch_device)

    def decode(self, name: str, batch: int, context: int, steps: int) -> float:
        """Milliseconds a step of greedy decoding. Static caches are no longer than necessary."""
        prompt, first = self.tokens(batch, context), self.tokens(batch, 1)
        cache_len = -(-(context + (WARM + RUNS) * steps + 1) // 64) * 64
        if name == "hf_eager":
            run = self._hf_eager(prompt, first, steps)
        elif name.startswith("hf_static"):
            run = self._hf_static(prompt, first, steps, cache_len, compiled=name == "hf_static_compile")
        else:
            fast = Fast(self.model, self.config, batch, cache_len)
            fast.prefill(prompt)
            start = torch.tensor([context], device=self.torch_device)
            if name == "fast_compile":
                run = self._fast_compile(fast, first, start, steps)
            elif self.on_gpu:
                run = self._fast_graph(fast, first, start, steps)
            else:
                run = lambda: [fast.decode(first, start) for _ in range(steps)]  # noqa: E731
        return self.timed(run, steps)

    def _hf_eager(self, prompt: torch.Tensor, first: torch.Tensor, steps: int) -> Callable[[], Any]:
        cache = DynamicCache(config=self.model.config)
        self.model(prompt, past_key_values=cache, logits_to_keep=1)

        def run() -> None:
            tokens = first
            for _ in range(steps):
                tokens = self.model(tokens, past_key_values=cache, logits_to_keep=1).logits[:, -1:].argmax(-1)

        return run

    def _hf_static(
        self, prompt: torch.Tensor, first: torch.Tensor, steps: int, cache_len: int, compiled: bool
    ) -> Callable[[], Any]:
        cache = StaticCache(config=self.model.config, max_cache_len=cache_len)
        self.model(prompt, past_key_values=cache, logits_to_keep=1)
        step: Any = self.model.forward
        if compiled:
            step = torch.compile(step, mode="reduce-overhead", fullgraph=True)

        def run() -> None:
            tokens = first
            for _ in range(steps):
                out = step(input_ids=tokens, past_key_values=cache, logits_to_keep=1)
                tokens = out.logits[:, -1:].argmax(-1).clone()

        return run

    def _fast_compile(self, fast: Fast, first: torch.Tensor, start: torch.Tensor, steps: int) -> Callable[[], Any]:
        compiled = torch.compile(fast.decode, mode="reduce-overhead", fullgraph=True)

        def run() -> None:
            tokens, position = first, start
            for _ in range(steps):
                tokens, position = compiled(tokens.clone(), position.clone())

        return run

    def _fast_graph(self, fast: Fast, first: torch.Tensor, start: torch.Tensor, steps: int) -> Callable[[], Any]:
        tokens, position, graph = first.clone(), start.clone(), torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            fast.decode(tokens, position)
        self.sync()
        with torch.cuda.graph(graph):
            next_tokens, next_position = fast.decode(tokens, position)
            tokens.copy_(next_tokens)
            position.copy_(next_position)

        def run() -> None:
            position.copy_(start)
            for _ in range(steps):
                graph.replay()

        return run

    def prefill(self, T: int) -> dict[str, float]:
        """Milliseconds for a prompt of T tokens: transformers, and the fast model with each attention backend."""
        tokens = self.tokens(1, T)
        found = {"hf_sdpa": self.timed(lambda: self.model(tokens, logits_to_keep=1, use_cache=False))}
        fast = Fast(self.model, self.config, 1, max(T, 64))
        for backend in self.backends():
            with sdpa_kernel([backend]), suppress(RuntimeError):  # this GPU or this torch may lack the backend
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
            torch.randn(1, heads, T, c.head_dim, device=self.torch_device, dtype=torch.bfloat16)
            for heads in (c.n_heads, c.n_kv_heads, c.n_kv_heads)
        )
        for backend in self.backends():
            with sdpa_kernel([backend]), suppress(RuntimeError):
                found[backend.name.lower()] = self.timed(
                    lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
                )
        return found

    def product(self, name: str) -> float:
        """Milliseconds of a matrix times one row by cuBLAS, in a graph of more matrices than the L2 cache holds."""
        n_out, width = shapes(self.config)[name]
        n = max(2, int(4e8 / (n_out * width * 2)) + 1) if self.on_gpu else 2
        matrices = [torch.randn(n_out, width, device=self.torch_device, dtype=torch.bfloat16) for _ in range(n)]
        x = torch.randn(1, width, device=self.torch_device, dtype=torch.bfloat16)

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
        """TFLOP/s of a large product in bf16: the limit for prefill."""
        n = 256 if not self.on_gpu else 8192
        a, b = (torch.randn(n, n, device=self.torch_device, dtype=torch.bfloat16) for _ in range(2))
        return 2 * n**3 / self.timed(lambda: a @ b, runs=7) / 1e9

    def pinned_rate(self) -> float:
        """GB/s of a copy from pinned memory to the device."""
        data = torch.empty((1 << 14) if not self.on_gpu else (1 << 30), dtype=torch.uint8, pin_memory=self.on_gpu)
        target = torch.empty_like(data, device=self.torch_device)
        return data.numel() / self.timed(lambda: target.copy_(data, non_blocking=True), runs=5) / 1e6
