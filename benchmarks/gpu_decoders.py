"""Other implementations of decoding on the same GPU with the same weights, for gpu.py.

hf_eager            transformers with a growing cache: what most people run
hf_static           transformers with its static cache
hf_static_compile   the same under torch.compile with CUDA graphs: the fastest that transformers offers
fast_graph          written for speed (gpu_fast.py): eager kernels in one CUDA graph
fast_compile        the same under torch.compile with the settings of gpt-fast: the baseline to beat

Every step draws its tokens, greedily, and sends them to the host, which reads them one step later: as this project's
engine does, no baseline waits for the host before it starts the next step.
"""

from collections.abc import Callable
from typing import Any

import torch
from gpu_fast import Fast, graph_counts  # the files beside this one
from gpu_timing import cache_length, prompt_length, timed_delivery
from transformers import DynamicCache, StaticCache

from llama3.config import ModelConfig

DECODERS = ("fast_compile", "fast_graph", "hf_static_compile", "hf_static", "hf_eager")
Step = Callable[[], torch.Tensor]  # launches a step -> its tokens, on the GPU


def gpt_fast_settings() -> None:
    import torch._inductor.config as inductor

    inductor.coordinate_descent_tuning = True
    inductor.triton.unique_kernel_names = True
    inductor.fx_graph_cache = True


def decode(name: str, model: Any, c: ModelConfig, batch: int, context: int) -> dict[str, Any]:
    """The milliseconds a step of each run; for a compiled one also whether it used CUDA graphs."""
    prompt = prompt_length(context, c.max_seq_len)
    cache_len = cache_length(context, c.max_seq_len)
    gpt_fast_settings()
    torch._dynamo.utils.counters.clear()
    if name.startswith("hf"):
        step = hf_step(name, model, batch, prompt, cache_len)
    else:
        fast = Fast(model, c, batch, cache_len)
        fast.position.fill_(prompt)
        step = compiled_step(fast) if name == "fast_compile" else graph_step(fast)
    found: dict[str, Any] = {"runs_ms": timed_delivery(reading_behind(step, batch), batch)}
    if name.endswith("compile"):
        found |= graph_counts()
        if found["cudagraph_skips"] or not found["cudagraphs"]:
            found["note"] = "NOT in CUDA graphs: no fair baseline"
    return found


def reading_behind(step: Step, batch: int) -> Callable[[], int]:
    """Launches a step, then waits for the tokens of the step before it, and returns how many these are."""
    slots = [(torch.empty(batch, dtype=torch.int64, pin_memory=True), torch.cuda.Event()) for _ in range(2)]

    def send() -> None:
        host, sent = slots[0]
        host.copy_(step().view(-1), non_blocking=True)
        sent.record()
        slots.reverse()  # the step under way is now the last, and the one before it the first

    def next_tokens() -> int:
        send()
        host, sent = slots[0]
        sent.synchronize()
        return len(host.tolist())

    send()
    return next_tokens


def hf_step(name: str, model: Any, batch: int, prompt: int, cache_len: int) -> Step:
    tokens = torch.randint(0, model.config.vocab_size, (batch, prompt), device=model.lm_head.weight.device)
    config = model.config
    cache = DynamicCache(config=config) if name == "hf_eager" else StaticCache(config, max_cache_len=cache_len)
    model(tokens, past_key_values=cache, logits_to_keep=1)
    forward: Any = model.forward
    if name == "hf_static_compile":
        forward = torch.compile(forward, mode="reduce-overhead", fullgraph=True)
    tokens = tokens[:, :1]

    def step() -> torch.Tensor:
        nonlocal tokens
        tokens = forward(input_ids=tokens, past_key_values=cache, logits_to_keep=1).logits[:, -1:].argmax(-1)
        return tokens

    return step


def compiled_step(fast: Fast) -> Step:
    fast.keep_addresses()
    compiled = torch.compile(fast.step, mode="reduce-overhead", fullgraph=True)

    def step() -> torch.Tensor:
        compiled()
        return fast.tokens

    return step


def graph_step(fast: Fast) -> Step:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        fast.step()  # once before the capture: libraries allocate at their first call
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fast.step()

    def step() -> torch.Tensor:
        graph.replay()
        return fast.tokens

    return step
