"""Speed and memory on the CPU, with four layers of the 8B's shapes, its embedding and its output matrix.

    python benchmarks/cpu.py [--out FILE.json]        (needs the extra "oracle" and 12 GB of memory)

Three figures, each with a bar, all from one run in which both sides use the same number of threads:
- decoding at batch 1 after 256 tokens, against transformers in bfloat16 on the same weights and the same cache;
- the forward pass of a prompt of 512 tokens, against NumPy's float32 matmul of the layers' projections alone;
- the peak memory of a process that reads a prompt of 8,192 tokens, above its weights and its cache.

The weights are random and in bfloat16. The two sides take turns, and a ratio is the median of the turns' ratios, so
that other work on the machine affects both. The speed of transformers at prompts is shown without a bar.
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from machine import about_this_run  # the file beside this one
from threadpoolctl import threadpool_info, threadpool_limits

from llama3.config import ModelConfig
from llama3.cpu_model import CpuModel
from llama3.engine import Engine, Request
from llama3.model.batch import Batch
from llama3.model.weights import LayerWeights, Weights
from llama3.sampling_params import SamplingParams

CONFIG = ModelConfig(dim=4096, n_layers=4, n_heads=32, n_kv_heads=8, head_dim=128, hidden_dim=14336, vocab_size=128_256)
CONTEXT = 256  # tokens in the cache before the first decoded one
TOKENS = 4  # decoded in a turn
PROMPT = 512
LONG_PROMPT = 8192
TORCH_PROMPT = 64  # short: without bfloat16 instructions torch needs minutes for 512 tokens
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
GIB = 2**30


def random_matrix(rng: np.random.Generator, out: int, into: int) -> np.ndarray:
    """(out, into) bfloat16 of both signs, from 2^-7 to 2^-5: made of bits, since two billion normals take a minute."""
    matrix = np.empty((out, into), np.uint16)
    for begin in range(0, out, 1024):  # in parts, or making a matrix would be the peak of the memory
        part = matrix[begin : begin + 1024]
        bits = rng.integers(0, 2**9, part.shape, np.uint16)
        part[:] = (bits >> 8 << 15) | 0x3C00 | (bits & 0xFF)
    return matrix.view(ml_dtypes.bfloat16)


def random_weights(c: ModelConfig) -> Weights:
    rng = np.random.default_rng(0)
    ones = np.ones(c.dim, ml_dtypes.bfloat16)
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    layers = [
        LayerWeights(
            attention_norm=ones,
            wq=random_matrix(rng, q, c.dim),
            wk=random_matrix(rng, kv, c.dim),
            wv=random_matrix(rng, kv, c.dim),
            wo=random_matrix(rng, c.dim, q),
            ffn_norm=ones,
            w1=random_matrix(rng, c.hidden_dim, c.dim),
            w2=random_matrix(rng, c.dim, c.hidden_dim),
            w3=random_matrix(rng, c.hidden_dim, c.dim),
        )
        for _ in range(c.n_layers)
    ]
    embeddings, output = (random_matrix(rng, c.vocab_size, c.dim) for _ in range(2))
    return Weights(embeddings, layers, ones, output)


def random_transformer() -> CpuModel:
    return CpuModel(CONFIG, random_weights(CONFIG))


def projections(layer: LayerWeights) -> list[np.ndarray]:
    return [layer.wq, layer.wk, layer.wv, layer.wo, layer.w1, layer.w3, layer.w2]


def weight_bytes(weights: Weights) -> int:
    matrices = [weights.tok_embeddings, weights.output, *(w for layer in weights.layers for w in projections(layer))]
    return sum(w.nbytes for w in matrices)


def torch_twin(weights: Weights) -> Any:
    """transformers' LlamaForCausalLM in bfloat16 on the same memory."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    def tensor(w: np.ndarray) -> Any:
        return torch.from_numpy(w.view(np.int16)).view(torch.bfloat16)

    torch.set_num_threads(THREADS)
    c = CONFIG
    config = LlamaConfig(
        hidden_size=c.dim,
        num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads,
        num_key_value_heads=c.n_kv_heads,
        head_dim=c.head_dim,
        intermediate_size=c.hidden_dim,
        vocab_size=c.vocab_size,
        rms_norm_eps=c.norm_eps,
        max_position_embeddings=c.max_seq_len,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        dtype=torch.bfloat16,
    )
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
    state = {
        "model.embed_tokens.weight": weights.tok_embeddings,
        "model.norm.weight": weights.norm,
        "lm_head.weight": weights.output,
    }
    names = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    names += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    for i, layer in enumerate(weights.layers):
        state[f"model.layers.{i}.input_layernorm.weight"] = layer.attention_norm
        state[f"model.layers.{i}.post_attention_layernorm.weight"] = layer.ffn_norm
        for name, w in zip(names, projections(layer), strict=True):
            state[f"model.layers.{i}.{name}.weight"] = w
    model.load_state_dict({name: tensor(w) for name, w in state.items()}, assign=True)
    model.model.rotary_emb = LlamaRotaryEmbedding(config)  # its table is no parameter, and was on "meta" too
    return model.eval()


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare_decoding(model: CpuModel, turns: int) -> dict:
    import torch
    from transformers import DynamicCache

    twin = torch_twin(model.weights)
    prompt = np.random.default_rng(1).integers(0, CONFIG.vocab_size, CONTEXT + TOKENS).tolist()
    prompt, tokens = prompt[:CONTEXT], prompt[CONTEXT:]
    cache, twin_cache = model.new_cache(1, CONTEXT + TOKENS), DynamicCache()
    model.forward(Batch.of([(0, prompt)]), cache, np.array([], int))
    for layer in range(CONFIG.n_layers):  # the twin takes our cache: to read the prompt, it would need a minute
        k, v = (torch.from_numpy(a[:1, layer, :, :CONTEXT]).to(torch.bfloat16) for a in (cache.k, cache.v))
        twin_cache.update(k, v, layer)

    def ours() -> list[np.ndarray]:
        cache.truncate(0, CONTEXT)
        return [model.forward(Batch.of([(0, [token])]), cache, np.array([0]))[0] for token in tokens]

    def theirs(ids: list[int], **arguments: Any) -> np.ndarray:
        with torch.inference_mode():
            logits = twin(torch.tensor([ids]), logits_to_keep=1, **arguments).logits
        return logits[0, -1].float().numpy()

    def theirs_in_turn() -> list[np.ndarray]:
        logits = [theirs([token], past_key_values=twin_cache) for token in tokens]
        twin_cache.crop(-TOKENS)  # remove these tokens from the end
        return logits

    error = max(nmse(b, a) for a, b in zip(ours(), theirs_in_turn()))  # a warm-up, and a check that both agree
    assert error < 1e-2, f"the two do not compute the same: normalised mean square error {error}"
    times = [(seconds(ours), seconds(theirs_in_turn)) for _ in range(turns)]
    twin_prompt = seconds(lambda: theirs(prompt[:TORCH_PROMPT], use_cache=False))
    return {
        "ours_tokens_per_s": [TOKENS / a for a, _ in times],
        "transformers_tokens_per_s": [TOKENS / b for _, b in times],
        "nmse_of_logits": error,
        "transformers_prompt_tokens_per_s": TORCH_PROMPT / twin_prompt,
        "ratio": statistics.median(b / a for a, b in times),
    }


def nmse(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sum((a - b) ** 2) / np.sum(b**2))


def compare_prompt(model: CpuModel, turns: int) -> dict:
    rng = np.random.default_rng(2)
    prompt = rng.integers(0, CONFIG.vocab_size, PROMPT).tolist()
    cache = model.new_cache(1, PROMPT)
    float32 = [w.astype(np.float32) for w in projections(model.weights.layers[0])]
    inputs = {n: rng.standard_normal((PROMPT, n), dtype=np.float32) for n in (CONFIG.dim, CONFIG.hidden_dim)}

    def ours() -> None:
        cache.truncate(0, 0)
        model.forward(Batch.of([(0, prompt)]), cache, np.array([PROMPT - 1]))

    def numpy_alone() -> None:
        for _ in range(CONFIG.n_layers):
            for w in float32:
                inputs[w.shape[1]] @ w.T

    times = [(seconds(ours), seconds(numpy_alone)) for _ in range(turns)]
    return {
        "ours_tokens_per_s": [PROMPT / a for a, _ in times],
        "numpy_float32_tokens_per_s": [PROMPT / b for _, b in times],
        "ratio": statistics.median(b / a for a, b in times),
    }


def long_prompt() -> dict:
    """Read a long prompt through the engine, as a request does. main() runs this in a process of its own."""
    model = random_transformer()
    engine = Engine(model, slots=1, max_len=LONG_PROMPT + 1)
    prompt = np.random.default_rng(3).integers(0, CONFIG.vocab_size, LONG_PROMPT).tolist()
    engine.submit(Request(prompt, SamplingParams(temperature=0), max_tokens=1))
    start = time.perf_counter()
    while engine.busy:
        engine.step()
    took = time.perf_counter() - start
    weights, cache, peak = weight_bytes(model.weights), engine.cache.k.nbytes + engine.cache.v.nbytes, peak_memory()
    return {
        "prompt_tokens_per_s": LONG_PROMPT / took,
        "weights_gib": weights / GIB,
        "cache_gib": cache / GIB,
        "peak_gib": peak / GIB,
        "beyond_gib": (peak - weights - cache) / GIB,
    }


def peak_memory() -> int:
    """In bytes. On Linux, getrusage would include the memory that the parent had when it started this process."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        assert found is not None
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    arguments = parser.parse_args()

    about = about_this_run()
    about["torch"], about["transformers"] = (importlib.metadata.version(name) for name in ("torch", "transformers"))
    about["blas"] = [(b["internal_api"], b["version"], b.get("architecture")) for b in threadpool_info()]
    about["threads"] = THREADS
    print(*(f"{name}: {value}" for name, value in about.items()), sep="\n", end="\n\n", flush=True)

    with multiprocessing.get_context("spawn").Pool(1) as other:
        memory = other.apply(long_prompt)
    model = random_transformer()
    with threadpool_limits(THREADS, user_api="blas"):
        decoding, prompt = compare_decoding(model, arguments.turns), compare_prompt(model, arguments.turns)

    def tokens(figures: dict, name: str) -> str:
        return f"{statistics.median(figures[name]):.2f} tokens/s"

    rows = [
        ("decode, ours", tokens(decoding, "ours_tokens_per_s"), ""),
        ("decode, transformers bf16", tokens(decoding, "transformers_tokens_per_s"), ""),
        ("decode, ratio", f"{decoding['ratio']:.2f}", ">= 0.6"),
        (f"prompt of {PROMPT}, ours", tokens(prompt, "ours_tokens_per_s"), ""),
        (f"prompt of {PROMPT}, NumPy float32 products", tokens(prompt, "numpy_float32_tokens_per_s"), ""),
        (f"prompt of {PROMPT}, ratio", f"{prompt['ratio']:.2f}", ">= 0.8"),
        (
            f"prompt of {TORCH_PROMPT}, transformers bf16",
            f"{decoding['transformers_prompt_tokens_per_s']:.2f} tokens/s",
            "",
        ),
        (f"prompt of {LONG_PROMPT}, ours", f"{memory['prompt_tokens_per_s']:.2f} tokens/s", ""),
        (f"prompt of {LONG_PROMPT}, weights + cache", f"{memory['weights_gib'] + memory['cache_gib']:.2f} GiB", ""),
        (f"prompt of {LONG_PROMPT}, peak beyond those", f"{memory['beyond_gib']:.2f} GiB", "<= 1"),
    ]
    for name, figure, bar in rows:
        print(f"{name:42}{figure:>20}   {bar}")
    if arguments.out:
        results = {"decode": decoding, "prompt": prompt, "long_prompt": memory}
        arguments.out.write_text(json.dumps({**about, **results}, indent=1) + "\n")
    met = decoding["ratio"] >= 0.6 and prompt["ratio"] >= 0.8 and memory["beyond_gib"] <= 1
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
