"""The kernels one after another, as a layer calls them: token by token, in a graph, against float64."""

import numpy as np

from llama3.config import ModelConfig
from llama3.cuda.attention import attention, new_workspace
from llama3.cuda.embedding import embedding
from llama3.cuda.linear import linear, linear_add, linear_swiglu
from llama3.cuda.rms_norm import rms_norm
from llama3.cuda.rope import rope
from llama3.model.attention import attention as plain_attention
from llama3.model.feed_forward import feed_forward
from llama3.model.rms_norm import rms_norm as plain_rms_norm
from llama3.model.rope import rope_table, rotate
from tests.cuda.kernel_checks import bfloat16, random

DIM, HIDDEN, N_HEADS, N_KV_HEADS, HEAD_DIM, MAX_LEN, EPS = 64, 192, 4, 1, 128, 300, 1e-5
CONFIG = ModelConfig(DIM, 1, N_HEADS, N_KV_HEADS, HEAD_DIM, HIDDEN, 50, rope_theta=500_000.0)
SHAPES = {
    "table": (50, DIM),
    "attention_norm": (DIM,),
    "wqkv": ((N_HEADS + 2 * N_KV_HEADS) * HEAD_DIM, DIM),
    "wo": (DIM, N_HEADS * HEAD_DIM),
    "ffn_norm": (DIM,),
    "w1": (HIDDEN, DIM),
    "w2": (DIM, HIDDEN),
    "w3": (HIDDEN, DIM),
}
WEIGHTS = {name: random(i, *shape, scale=shape[-1] ** -0.5) for i, (name, shape) in enumerate(SHAPES.items())}
WEIGHTS["attention_norm"] = WEIGHTS["ffn_norm"] = np.ones(DIM, bfloat16)
TOKENS = np.random.default_rng(0).integers(0, 50, (6, 2)).astype(np.int32)  # of two sequences
STARTS = np.array([0, 254], np.int32)  # the second one crosses from one split of attention to the next


def plain_layer(k, v):
    """In NumPy, float32: the rows (6, 2, DIM) that come out; k, v (2, N_KV_HEADS, MAX_LEN, HEAD_DIM) hold the past."""
    w = {name: array.astype(np.float32) for name, array in WEIGHTS.items()}
    cos, sin = rope_table(CONFIG, MAX_LEN)
    out = np.empty((*TOKENS.shape, DIM), np.float32)
    for step, tokens in enumerate(TOKENS):
        for slot, position in enumerate(STARTS + step):
            x = w["table"][tokens[slot : slot + 1]]
            qkv = (plain_rms_norm(x, w["attention_norm"], EPS) @ w["wqkv"].T).reshape(1, -1, HEAD_DIM)
            turned = rotate(qkv[:, : N_HEADS + N_KV_HEADS], cos[[position]], sin[[position]])
            k[slot, :, position], v[slot, :, position] = turned[0, N_HEADS:], qkv[0, N_HEADS + N_KV_HEADS :]
            seen = slice(0, position + 1)
            x = x + plain_attention(turned[:, :N_HEADS], k[slot, :, seen], v[slot, :, seen]) @ w["wo"].T
            x = x + feed_forward(plain_rms_norm(x, w["ffn_norm"], EPS), w["w1"], w["w2"], w["w3"])
            out[step, slot] = x[0]
    return out


def run(device, k, v, with_graph):
    w = {name: device.upload(array) for name, array in WEIGHTS.items()}
    table = tuple(device.upload(array) for array in rope_table(CONFIG, MAX_LEN))
    caches = device.upload(k), device.upload(v)
    tokens, positions = device.upload(TOKENS[0]), device.upload(STARTS)
    slots = device.upload(np.arange(2, dtype=np.int32))
    x, h = device.alloc((2, DIM), np.float32), device.alloc((2, DIM), bfloat16)
    qkv = device.alloc((2, (N_HEADS + 2 * N_KV_HEADS) * HEAD_DIM), bfloat16)
    q, mixed = (device.alloc((2, N_HEADS, HEAD_DIM), bfloat16) for _ in range(2))
    hidden = device.alloc((2, HIDDEN), bfloat16)
    workspace = new_workspace(device, 2, N_HEADS, HEAD_DIM, MAX_LEN)

    def layer():
        embedding(device, tokens, w["table"], x)
        rms_norm(device, x, w["attention_norm"], EPS, h)
        linear(device, h, w["wqkv"], qkv)
        rope(device, qkv.reshape(2, -1, HEAD_DIM), table, positions, slots, q, *caches)
        attention(device, q, *caches, positions, slots, workspace, mixed)
        linear_add(device, mixed.reshape(2, -1), w["wo"], x)
        rms_norm(device, x, w["ffn_norm"], EPS, h)
        linear_swiglu(device, h, w["w1"], w["w3"], hidden)
        linear_add(device, hidden, w["w2"], x)

    layer()  # compiles what a capture may not
    with device.capture() as graph:
        layer()
    rows = []
    for step in range(len(TOKENS)):
        device.upload(TOKENS[step], into=tokens)
        device.upload(STARTS + np.int32(step), into=positions)
        device.replay(graph) if with_graph else layer()
        rows.append(device.download(x))
    return np.stack(rows)


def test_token_by_token_it_agrees_with_numpy_and_a_graph_with_itself(device, in_every_order):
    k, v = random(100, 2, 2, N_KV_HEADS, MAX_LEN, HEAD_DIM)
    eager = in_every_order(lambda: run(device, k, v, with_graph=False))
    assert np.array_equal(run(device, k, v, with_graph=True), eager)
    expected = plain_layer(k.astype(np.float32), v.astype(np.float32))
    error = np.linalg.norm(eager - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert error.max() <= 1e-2, error
