"""The tensors that a checkpoint must hold, under Hugging Face's or Meta's names, and how they become `Weights`."""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from llama3.checkpoint.safetensors_file import FLOATS
from llama3.config import ModelConfig
from llama3.errors import CheckpointError
from llama3.model.weights import LayerWeights, Weights

HUGGING_FACE, META = "Hugging Face", "Meta"

# Our name -> (Hugging Face's, Meta's). A layer's names follow the prefix "model.layers.{i}." or "layers.{i}.".
TOP = {
    "tok_embeddings": ("model.embed_tokens.weight", "tok_embeddings.weight"),
    "norm": ("model.norm.weight", "norm.weight"),
    "output": ("lm_head.weight", "output.weight"),
}
LAYER = {
    "attention_norm": ("input_layernorm.weight", "attention_norm.weight"),
    "wq": ("self_attn.q_proj.weight", "attention.wq.weight"),
    "wk": ("self_attn.k_proj.weight", "attention.wk.weight"),
    "wv": ("self_attn.v_proj.weight", "attention.wv.weight"),
    "wo": ("self_attn.o_proj.weight", "attention.wo.weight"),
    "ffn_norm": ("post_attention_layernorm.weight", "ffn_norm.weight"),
    "w1": ("mlp.gate_proj.weight", "feed_forward.w1.weight"),
    "w2": ("mlp.down_proj.weight", "feed_forward.w2.weight"),
    "w3": ("mlp.up_proj.weight", "feed_forward.w3.weight"),
}
# Tables of RoPE's frequencies, which older files hold. They can be computed from the config, so they are ignored.
DERIVED = re.compile(r"rope\.freqs|model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def layout_of(names: Iterable[str]) -> str:
    """HUGGING_FACE or META, by the embedding's name. Raises CheckpointError unless exactly one name is there."""
    found = [layout for layout, name in zip((HUGGING_FACE, META), TOP["tok_embeddings"]) if name in set(names)]
    if len(found) != 1:
        raise CheckpointError(
            f"expected the embedding {' or '.join(TOP['tok_embeddings'])}; {'both' if found else 'neither'} is there"
        )
    return found[0]


def shapes(config: ModelConfig, layout: str) -> dict[str, tuple[int, ...]]:
    """The name and the shape of every tensor that a checkpoint of this config must hold."""
    c, column = config, (HUGGING_FACE, META).index(layout)
    of_layer = {
        "attention_norm": (c.dim,),
        "wq": (c.n_heads * c.head_dim, c.dim),
        "wk": (c.n_kv_heads * c.head_dim, c.dim),
        "wv": (c.n_kv_heads * c.head_dim, c.dim),
        "wo": (c.dim, c.n_heads * c.head_dim),
        "ffn_norm": (c.dim,),
        "w1": (c.hidden_dim, c.dim),
        "w2": (c.dim, c.hidden_dim),
        "w3": (c.hidden_dim, c.dim),
    }
    expected: dict[str, tuple[int, ...]] = {TOP["tok_embeddings"][column]: (c.vocab_size, c.dim)}
    for i in range(c.n_layers):
        expected |= {layer_name(i, ours, layout): shape for ours, shape in of_layer.items()}
    expected[TOP["norm"][column]] = (c.dim,)
    if not c.tied_embeddings:
        expected[TOP["output"][column]] = (c.vocab_size, c.dim)
    return expected


def layer_name(i: int, ours: str, layout: str) -> str:
    """A layer's tensor in the file: `layer_name(3, "wq", META) == "layers.3.attention.wq.weight"`."""
    hugging_face, meta = LAYER[ours]
    return f"model.layers.{i}.{hugging_face}" if layout == HUGGING_FACE else f"layers.{i}.{meta}"


def check(config: ModelConfig, tensors: dict[str, Any], layout: str) -> None:
    """Raises CheckpointError unless the tensors' names and shapes are exactly what the config requires.

    A quantised matrix is one tensor here (`quantised.schemes.read_matrices`); all others must hold plain floats.
    """
    expected = shapes(config, layout)
    if missing := [name for name in expected if name not in tensors]:
        raise CheckpointError(f"{_tensors(missing)} missing")
    known = {*expected, *(name for name in tensors if DERIVED.fullmatch(name))}
    if config.tied_embeddings:
        known |= set(TOP["output"])
    if extra := [name for name in tensors if name not in known]:
        raise CheckpointError(f"{_tensors(extra)} not part of a Llama 3 of this config ({config.n_layers} layers)")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise CheckpointError(f"tensor {name!r} has the shape {tensors[name].shape}; the config requires {shape}")
        if isinstance(tensors[name], np.ndarray) and tensors[name].dtype not in FLOATS.values():
            raise CheckpointError(f"tensor {name!r} is {tensors[name].dtype}; expected {', '.join(FLOATS)}")


def to_weights(config: ModelConfig, tensors: dict[str, Any], layout: str) -> Weights:
    """The tensors as `Weights`, with wq and wk in this project's RoPE layout. Call `check` first.

    Only wq and wk of Meta's layout are copied; all other arrays remain views of the file.
    """
    column = (HUGGING_FACE, META).index(layout)

    def layer(i: int) -> LayerWeights:
        fields = {ours: tensors[layer_name(i, ours, layout)] for ours in LAYER}
        if layout == META:
            fields["wq"] = split_halves(fields["wq"], config.n_heads)
            fields["wk"] = split_halves(fields["wk"], config.n_kv_heads)
        return LayerWeights(**fields)

    tok_embeddings = tensors[TOP["tok_embeddings"][column]]
    output = tensors.get(TOP["output"][column], tok_embeddings)
    if config.tied_embeddings and output is not tok_embeddings:
        # transformers 4 ignores such an output matrix, and transformers 5 uses it. Unless it equals the embedding, the
        # checkpoint is ambiguous.
        if not _same_bytes(output, tok_embeddings):
            raise CheckpointError(
                f"{TOP['output'][column]} differs from {TOP['tok_embeddings'][column]}, but the config ties the two: "
                "delete the tensor, or set tie_word_embeddings to false"
            )
        output = tok_embeddings
    return Weights(tok_embeddings, [layer(i) for i in range(config.n_layers)], tensors[TOP["norm"][column]], output)


def split_halves(w: np.ndarray, n_heads: int) -> np.ndarray:
    """Reorder the rows of Meta's wq or wk for our RoPE. w: (n_heads * head_dim, dim) -> the same shape.

    Meta's RoPE rotates rows 2i and 2i + 1 of a head together. Ours rotates rows i and i + head_dim / 2.
    """
    heads = w.reshape(n_heads, -1, 2, w.shape[1])  # (n_heads, head_dim / 2, 2, dim)
    return heads.swapaxes(1, 2).reshape(w.shape)  # (n_heads * head_dim, dim)


def _same_bytes(a: np.ndarray, b: np.ndarray, block: int = 4096) -> bool:
    """Compares in blocks of rows, because comparing whole embeddings would allocate hundreds of megabytes."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    rows = range(0, len(a), block)
    return all(np.array_equal(a[i : i + block].view(np.uint8), b[i : i + block].view(np.uint8)) for i in rows)


def _tensors(names: list[str]) -> str:
    """ "tensor 'a' is", "tensors 'a', 'b' are", "12 tensors ('a', 'b', 'c', ...) are"."""
    if len(names) > 3:
        return f"{len(names)} tensors ({', '.join(map(repr, names[:3]))}, ...) are"
    return f"tensor {names[0]!r} is" if len(names) == 1 else f"tensors {', '.join(map(repr, names))} are"
