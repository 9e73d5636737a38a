"""What torch reaches on the same GPU, for gpu.py: whole prompts, attention of a prompt, single products, and limits."""

from collections.abc import Callable
from typing import Any

import torch
from gpu_fast import Fast  # the file beside this one
from gpu_timing import timed
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from llama3.config import ModelConfig

BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
PREFILLS = ("hf_sdpa", "fast_flash", "fast_cudnn", "fast_compile")
REPLAYS = 4  # of a graph of products in a timing: the launch of the graph and the wait then hardly count
REPEATED = "with a key head for each query head: this torch takes no fewer"


def prefill(name: str, model: Any, c: ModelConfig, T: int) -> dict[str, Any]:
    """A prompt of T tokens, until the logits of its last token are in the host's memory."""
    tokens = torch.randint(0, c.vocab_size, (1, T), device=model.lm_head.weight.device)
    if name == "hf_sdpa":
        return timed_run(lambda: model(tokens, logits_to_keep=1, use_cache=False).logits.cpu())
    fast = Fast(model, c, 1, T)
    if name == "fast_compile":
        compiled = torch.compile(fast.prefill, fullgraph=True)
        return timed_run(lambda: compiled(tokens).cpu())
    return on_backend(name.removeprefix("fast_"), lambda repeat: lambda: fast.prefill(tokens, repeat).cpu())


def attention(name: str, c: ModelConfig, T: int, torch_device: str) -> dict[str, Any]:
    """One layer's causal attention over a prompt of T tokens. If heads must be repeated, it is before the timing."""
    q, k, v = (
        torch.randn(1, heads, T, c.head_dim, device=torch_device, dtype=torch.bfloat16)
        for heads in (c.n_heads, c.n_kv_heads, c.n_kv_heads)
    )
    group = c.n_heads // c.n_kv_heads

    def run(repeat: bool) -> Callable[[], Any]:
        keys, values = (x.repeat_interleave(group, 1) if repeat else x for x in (k, v))
        return lambda: F.scaled_dot_product_attention(q, keys, values, is_causal=True, enable_gqa=not repeat)

    return on_backend(name, run)


def on_backend(name: str, run: Callable[[bool], Callable[[], Any]]) -> dict[str, Any]:
    """run(False) makes what is timed; run(True) the same with as many key heads as query heads, if it has to be."""
    with sdpa_kernel([BACKENDS[name]]):
        try:
            run(False)()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            return timed_run(run(True)) | {"note": REPEATED}
        return timed_run(run(False))


def timed_run(run: Callable[[], Any], steps: int = 1) -> dict[str, Any]:
    return {"runs_ms": timed(torch.cuda.synchronize, run, steps)}


def product(matrices: list[torch.Tensor]) -> dict[str, Any]:
    """Each matrix times one row by cuBLAS, one after the other in a CUDA graph."""
    x = torch.randn(1, matrices[0].shape[1], device=matrices[0].device, dtype=torch.bfloat16)

    def run() -> None:
        for matrix in matrices:
            F.linear(x, matrix)

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return timed_run(lambda: [graph.replay() for _ in range(REPLAYS)], REPLAYS * len(matrices))


def matmul_rate(torch_device: str) -> float:
    """TFLOP/s of a large product in bf16: the limit for prefill."""
    n, times = 8192, 10
    a, b = (torch.randn(n, n, device=torch_device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    ms = min(timed(torch.cuda.synchronize, lambda: [torch.mm(a, b, out=out) for _ in range(times)], times))
    return 2 * n**3 / ms / 1e9


def pinned_rate(torch_device: str) -> float:
    """GB/s of a copy from pinned memory to the device."""
    data = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(data, device=torch_device, pin_memory=False)
    ms = min(timed(torch.cuda.synchronize, lambda: target.copy_(data, non_blocking=True)))
    return data.numel() / ms / 1e6
