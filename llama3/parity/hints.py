"""What is known of a fault from the first activation that differs and the first position at which it does."""

HINTS = {  # the end of an activation's name -> where to look
    "tok_embeddings": "Look at the embedding table: its rows, its dtype, a scale that Llama does not have.",
    "attention_norm": "Look at RMSNorm: norm_eps, the weight, the mean over the last axis.",
    "ffn_norm": "Look at RMSNorm: norm_eps, the weight, and what it reads (the residual stream after attention).",
    "q": "Look at wq: its rows, a bias that Llama does not have.",
    "k": "Look at wk: its rows, its heads, a bias that Llama does not have.",
    "v": "Look at wv: its rows, its heads, a bias that Llama does not have.",
    "q_rope": "Look at the rotation: layout, theta, scaling, positions.",
    "k_rope": "Look at the rotation: layout, theta, scaling, positions.",
    "scores": "Look at the scores: 1/sqrt(head_dim), the mask, which key head a query head reads.",
    "weights": "Look at the softmax and at the mask.",
    "output": "Look at which value head a query head reads.",
    "attention": "Look at the attention block: the rotation, the scale, the mask, the order of the heads, wo.",
    "attention_residual": "Look at the sum of the residual stream and the attention block's output.",
    "gate": "Look at w1, the gate.",
    "up": "Look at w3.",
    "feed_forward": "Look at SwiGLU: w2 (silu(w1 x) * (w3 x)).",
    "": "Look at the sum of the residual stream and the feed-forward block's output.",
    "norm": "Look at the final RMSNorm.",
    "logits": "Look at the output matrix, if the final norm is known to be right; else add activations to the file.",
}


def hint(name: str, position: int) -> str:
    """One or two sentences. name: of an activation, or "logits"; position: where it differs first."""
    part = name.split(".")[-1] if not name.startswith("layers.") or name.count(".") > 1 else ""
    text = HINTS.get(part, "")
    if position > 0 and part in ("q_rope", "k_rope", "scores", "weights", "output", "attention", "logits"):
        text += f" Positions before {position} are right"
        text += ", and position 0 is not rotated: look at the rotation first." if position == 1 else "."
    return text
