"""The step between `llama3.plain` and the engine: a KV cache, so that a new token costs one row of work, and streaming.

    python docs/examples/minimal_generator.py "What is RoPE?"

Each layer keeps the rotated keys and the values of all earlier positions. A step computes only the rows of its new
tokens, and these attend to everything in the cache.
"""

import sys
from collections.abc import Iterator

import numpy as np

from llama3 import Llama, SamplingParams, plain
from llama3.philox import uniform
from llama3.tokenizer import StreamDecoder


def forward(tokens, config, weights, cache) -> np.ndarray:
    """Run new tokens, add their keys and values to the cache -> the last token's logits, (vocab_size,) float64."""
    c, group, start = config, config.n_heads // config.n_kv_heads, len(cache[0][0])  # start: positions in the cache
    angle = plain.rope_angles(np.arange(start, start + len(tokens)), c)
    x = weights.tok_embeddings[np.array(tokens)].astype(np.float64)
    for i, layer in enumerate(weights.layers):
        h = plain.rms_norm(x, layer.attention_norm, c.norm_eps)
        q, k, v = (plain.linear(h, w).reshape(len(tokens), -1, c.head_dim) for w in (layer.wq, layer.wk, layer.wv))
        q, k = plain.rotate(q, angle), plain.rotate(k, angle)
        keys, values = cache[i] = np.concatenate([cache[i][0], k]), np.concatenate([cache[i][1], v])
        scores = [plain.attention_scores(q[:, j], keys[:, j // group]) for j in range(c.n_heads)]
        heads = [plain.softmax(scores[j]) @ values[:, j // group] for j in range(c.n_heads)]
        x = x + plain.linear(np.concatenate(heads, axis=1), layer.wo)
        h = plain.rms_norm(x, layer.ffn_norm, c.norm_eps)
        x = x + plain.linear(plain.silu(plain.linear(h, layer.w1)) * plain.linear(h, layer.w3), layer.w2)
    return plain.linear(plain.rms_norm(x[-1], weights.norm, c.norm_eps), weights.output)


def stream(prompt, config, weights, params, stop_ids, max_tokens=256) -> Iterator[int]:
    """Yield each token id as it is drawn, the stop token included: the ids of `Llama.stream` with the same seed."""
    empty = np.empty((0, config.n_kv_heads, config.head_dim))
    cache = [(empty, empty)] * config.n_layers  # keys and values, (positions, n_kv_heads, head_dim) each
    params, output, new = params.with_seed(), [], prompt
    while len(output) < max_tokens and not (output and output[-1] in stop_ids):
        logits = forward(new, config, weights, cache).astype(np.float32)
        new = [plain.sample(logits, params, uniform(params.seed, len(output)), prompt, output)]
        output += new
        yield from new


if __name__ == "__main__":
    llama = Llama.load()
    prompt = llama.encode_chat([{"role": "user", "content": " ".join(sys.argv[1:]) or "What is RoPE?"}])
    model, decoder = llama.checkpoint, StreamDecoder(llama.tokenizer)
    for token in stream(prompt, model.config, model.weights, SamplingParams(temperature=0), model.stop_ids):
        print(decoder.push(token) if token not in model.stop_ids else "\n", end="", flush=True)
