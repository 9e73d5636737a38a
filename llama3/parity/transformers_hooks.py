"""Records the intermediate values of a transformers model by this project's names, with PyTorch's hooks."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from transformers.models.llama import modeling_llama

from llama3.errors import RequestError


@contextmanager
def recording(model: Any, names: Collection[str]) -> Iterator[dict[str, np.ndarray]]:
    """While the `with` block runs, keep the values of `names` that one forward pass of one sequence computes.

    Raises RequestError for scores, which transformers does not show, and for weights without "eager" attention.
    """
    if scores := [name for name in names if name.endswith(".scores")]:
        raise RequestError(f"{scores[0]} cannot be recorded from transformers; its weights can, and q_rope and k_rope")
    if model.config._attn_implementation != "eager" and (heads := [n for n in names if n.endswith(".weights")]):
        raise RequestError(f"{heads[0]} can only be recorded with attention='eager'; see `load`")
    kept: dict[str, np.ndarray] = {}

    def keep(name: str, rows: Any) -> None:
        if name in names:
            kept[name] = rows.float().numpy().copy()

    def after(name: str, heads: bool = False) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            rows = output[0] if isinstance(output, tuple) else output  # attention also returns its weights
            keep(name, rows[0].unflatten(-1, (-1, model.config.head_dim)) if heads else rows[0])
            if isinstance(output, tuple) and name.endswith(".attention") and output[1] is not None:
                for j, weights in enumerate(output[1][0]):  # (T, T)
                    keep(name.replace("attention", f"heads.{j}.weights"), weights)

        return hook

    def before(name: str, heads: bool = False) -> Any:
        def hook(module: Any, inputs: Any) -> None:
            if not heads:
                keep(name, inputs[0][0])
                return
            for j, rows in enumerate(inputs[0][0].unflatten(-1, (-1, model.config.head_dim)).unbind(1)):
                keep(f"{name}.heads.{j}.output", rows)

        return hook

    with ExitStack() as stack:
        hooks = [model.model.embed_tokens.register_forward_hook(after("tok_embeddings"))]
        hooks.append(model.model.norm.register_forward_hook(after("norm")))
        for i, layer in enumerate(model.model.layers):
            at = f"layers.{i}"
            hooks += [
                layer.input_layernorm.register_forward_hook(after(f"{at}.attention_norm")),
                layer.self_attn.q_proj.register_forward_hook(after(f"{at}.q", heads=True)),
                layer.self_attn.k_proj.register_forward_hook(after(f"{at}.k", heads=True)),
                layer.self_attn.v_proj.register_forward_hook(after(f"{at}.v", heads=True)),
                layer.self_attn.o_proj.register_forward_pre_hook(before(at, heads=True)),
                layer.self_attn.register_forward_hook(after(f"{at}.attention")),
                layer.post_attention_layernorm.register_forward_pre_hook(before(f"{at}.attention_residual")),
                layer.post_attention_layernorm.register_forward_hook(after(f"{at}.ffn_norm")),
                layer.mlp.gate_proj.register_forward_hook(after(f"{at}.gate")),
                layer.mlp.up_proj.register_forward_hook(after(f"{at}.up")),
                layer.mlp.register_forward_hook(after(f"{at}.feed_forward")),
                layer.register_forward_hook(after(at)),
            ]
        for hook in hooks:
            stack.callback(hook.remove)
        stack.enter_context(_rotations(keep))
        yield kept


@contextmanager
def _rotations(keep: Any) -> Iterator[None]:
    """Pass rotated queries and keys to `keep`. No module returns them, so the function that rotates is wrapped."""
    rotate, layer = modeling_llama.apply_rotary_pos_emb, 0

    def wrapped(*args: Any, **keywords: Any) -> Any:
        nonlocal layer
        q, k = rotate(*args, **keywords)  # (1, heads, T, head_dim)
        keep(f"layers.{layer}.q_rope", q[0].transpose(0, 1))
        keep(f"layers.{layer}.k_rope", k[0].transpose(0, 1))
        layer += 1
        return q, k

    modeling_llama.apply_rotary_pos_emb = wrapped
    try:
        yield
    finally:
        modeling_llama.apply_rotary_pos_emb = rotate
