"""Answers to the exercises: wrong ones with what must be said of each, and right ones unlike plain.py's."""

ROTATE = """
    def rotate(x, angle):
        a, b = np.split(x, 2, axis=-1)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        {}
    """
HEAD = """
    def attention(q, k, v):
        T = len(q)
        scores = q @ k.T / np.sqrt(q.shape[1])
        {}
    """
SOFTMAX = "e = np.exp(scores - scores.max(-1, keepdims=True)); return e / e.sum(-1, keepdims=True) @ v"
MERGE = """
    def merge(chunk, ranks):
        parts = [chunk[i:i+1] for i in range(len(chunk))]
        while True:
            pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:])) if a + b in ranks]
            if not pairs:
                return [ranks[p] for p in parts]
            {}
            parts[i:i+2] = [parts[i] + parts[i+1]]
    """
NETWORK = """
    def silu(x): return x / (1 + np.exp(-x))
    def sigmoid(x): return 1 / (1 + np.exp(-x))
    def feed_forward(x, w1, w2, w3):
        gate, up = x @ w1.T, x @ w3.T
        return {}
    """
TOP_P = """
    def top_p(probabilities, p):
        order = np.argsort(-probabilities, kind="stable")
        sums = np.cumsum(probabilities[order])
        {}
        out = np.zeros(len(probabilities))
        out[keep] = probabilities[keep]
        return out / out.sum()
    """
NORM = "def rms_norm(x, weight, eps): return {}"
ANGLES = "def rope_angles(positions, c): return {}"
WRONG = [  # (exercise, the reader's file, what the answer must say)
    ("rms_norm", NORM.format("x / np.sqrt(x.mean(-1, keepdims=True) + eps) * weight"), "square x before the mean"),
    ("rms_norm", NORM.format("x / np.sqrt(x.mean(-1, keepdims=True)**2 + eps) * weight"), "squares the mean"),
    (
        "rms_norm",
        NORM.format("x / (np.sqrt((x**2).mean(-1, keepdims=True)) + eps) * weight"),
        "eps is outside the root",
    ),
    ("rms_norm", NORM.format("x / np.sqrt((x*x).mean(-1, keepdims=True)) * weight"), "eps is missing"),
    ("rms_norm", NORM.format("x / np.sqrt((x*x).mean(-1, keepdims=True) + eps)"), "weight is missing"),
    ("rms_norm", NORM.format("x / np.sqrt((x*x).mean(0) + eps) * weight"), "axis 0"),
    ("rms_norm", NORM.format("x / np.sqrt((x*x).mean() + eps) * weight"), "each row has its own"),
    (
        "rms_norm",
        NORM.format("(x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight"),
        "this is LayerNorm",
    ),
    ("rms_norm", NORM.format("x / np.sqrt((x*x).mean(-1) + eps) * weight"), "rms_norm.py, line 2: ValueError"),
    ("rms_norm", NORM.format("x / np.sqrt((x*x).mean(-1) + eps) * weight"), "keepdims=True"),
    (
        "rotate",
        "def rotate(x, angle):\n    a, b, cos, sin = *np.split(x, 2, axis=-1), np.cos(angle), np.sin(angle)\n"
        "    return np.concatenate([a*cos - b*sin, a*sin + b*cos], axis=-1)",
        "need an axis for the heads",
    ),
    (
        "rms_norm",
        NORM.format("3.5 * x / np.sqrt((x*x).mean(-1, keepdims=True) + eps) * weight"),
        "every entry is too large by the same factor 3.5",
    ),
    (
        "rms_norm",
        NORM.format("-x / np.sqrt((x*x).mean(-1, keepdims=True) + eps) * weight"),
        "every entry has the wrong sign",
    ),
    (
        "rms_norm",
        NORM.format("(x / np.sqrt((x*x).mean(-1, keepdims=True) + eps) * weight).T"),
        "shape is (8, 5), expected (5, 8)",
    ),
    ("rms_norm", NORM.format("x / np.linalg.norm(x) * weight"), "times a factor of its own"),
    (
        "rms_norm",
        "def rms_norm(x, weight, eps):\n    x /= np.sqrt((x*x).mean(-1, keepdims=True) + eps)\n    return x * weight",
        "it changed its input",
    ),
    ("rms_norm", "def rms_norm(x, weight, eps):\n    x / 2", "is a `return` missing?"),
    ("rms_norm", "def rms_norm(x): return x", "TypeError"),
    (
        "rotate",
        ANGLES.format("np.outer(positions + 1, c.rope_theta ** (-np.arange(0, c.head_dim, 2) / c.head_dim))"),
        "positions are counted from 1",
    ),
    (
        "rotate",
        ANGLES.format("np.outer(positions, c.rope_theta ** (-np.arange(c.head_dim // 2) / c.head_dim))"),
        "it lacks the factor 2",
    ),
    (
        "rotate",
        ANGLES.format("np.outer(positions, c.rope_theta ** (np.arange(0, c.head_dim, 2) / c.head_dim))"),
        "the exponent is positive",
    ),
    (
        "rotate",
        ANGLES.format("np.outer(positions, 10000 ** (-np.arange(0, c.head_dim, 2) / c.head_dim))"),
        "use c.rope_theta",
    ),
    (
        "rotate",
        ANGLES.format("np.outer(positions, c.rope_theta ** (-np.arange(0, c.head_dim, 2) / c.dim))"),
        "divide by head_dim",
    ),
    (
        "rotate",
        ANGLES.format("np.outer(c.rope_theta ** (-np.arange(0, c.head_dim, 2) / c.head_dim), positions)"),
        "shape is (8, 6), expected (6, 8); it is transposed",
    ),
    (
        "rotate",
        ANGLES.format("np.outer(positions**2, c.rope_theta ** (-np.arange(0, c.head_dim, 2) / c.head_dim))"),
        "first differs at position 2; positions 0 to 1 are right",
    ),
    ("rotate", ROTATE.format("return np.concatenate([a*cos + b*sin, b*cos - a*sin], -1)"), "it turns the other way"),
    ("rotate", ROTATE.format("return np.concatenate([a*cos - b*sin, b], -1)"), "the second half is not rotated"),
    ("rotate", ROTATE.format("return np.concatenate([a*cos - b*sin, a*sin - b*cos], -1)"), "the sign of b cos"),
    ("rotate", ROTATE.format("return np.concatenate([a*sin - b*cos, a*cos + b*sin], -1)"), "cos and sin are swapped"),
    (
        "rotate",
        ROTATE.format("return np.concatenate([a*sin + b*cos, a*cos - b*sin], -1)"),
        "halves of the result are swapped",
    ),
    (
        "rotate",
        ROTATE.format("""
        a, b, y = x[..., ::2], x[..., 1::2], np.empty_like(x)
        y[..., ::2], y[..., 1::2] = a*cos - b*sin, a*sin + b*cos
        return y"""),
        "the pairs are neighbours",
    ),
    (
        "rotate",
        "def rotate(x, angle):\n    return np.concatenate([x[..., :8] * np.cos(angle), x[..., 8:]], -1)",
        "ValueError",
    ),
    (
        "rotate",
        ROTATE.format("return np.concatenate([a*cos - b*sin, a*sin + b*cos + 0.1*sin], -1)"),
        "the first half of the channels is right",
    ),
    (
        "rotate",
        ROTATE.format("cos, sin = cos**2, sin**2; return np.concatenate([a*cos - b*sin, a*sin + b*cos], -1)"),
        "first differs at position 1; position 0 is right: look at the rotation",
    ),
    ("attention", HEAD.format(SOFTMAX), "attends to the future: the mask is missing"),
    ("attention", HEAD.format("scores[np.triu(np.ones((T, T), bool), 2)] = -np.inf; " + SOFTMAX), "one key too many"),
    (
        "attention",
        HEAD.format("scores[np.triu(np.ones((T, T), bool), 0)] = -np.inf; " + SOFTMAX),
        "query t must see key t",
    ),
    ("attention", HEAD.format("scores = scores + np.tril(np.ones((T, T))); " + SOFTMAX), "added as 0 and 1"),
    ("attention", HEAD.format("scores = scores * np.tril(np.ones((T, T))); " + SOFTMAX), "later keys score 0"),
    (
        "attention",
        HEAD.format("scores = q @ k.T; scores[np.triu(np.ones((T, T), bool), 1)] = -np.inf; " + SOFTMAX),
        "division by sqrt(head_dim) is missing",
    ),
    (
        "attention",
        HEAD.format(
            "scores[np.triu(np.ones((T, T), bool), 1)] = -np.inf; e = np.exp(scores - scores.max(0)); "
            "return e / e.sum(0) @ v"
        ),
        "axis 0",
    ),
    (
        "attention",
        HEAD.format(
            "scores[np.triu(np.ones((T, T), bool), 1)] = -np.inf; e = np.exp(scores); "
            "return e / e.sum(-1, keepdims=True) @ v"
        ),
        "exp overflows",
    ),
    ("attention", HEAD.format("scores[np.tril(np.ones((T, T), bool), -1)] = -np.inf; " + SOFTMAX), "upside down"),
    (
        "attention",
        HEAD.format("scores[np.triu(np.ones((T, T), bool), 3)] = -np.inf; " + SOFTMAX),
        "attends to the future",
    ),
    (
        "attention",
        HEAD.format(
            "scores[np.triu(np.ones((T, T), bool), 1)] = -np.inf; e = np.exp(scores - scores.max(-1, keepdims=True))"
            "; return (e / e.sum(-1, keepdims=True)).T @ v"
        ),
        "attends to the future",
    ),
    ("feed_forward", NETWORK.format("(silu(up) * gate) @ w2.T"), "gate and up are swapped"),
    ("feed_forward", NETWORK.format("(np.maximum(gate, 0) * up) @ w2.T"), "goes through relu"),
    ("feed_forward", NETWORK.format("(sigmoid(gate) * up) @ w2.T"), "silu(z) is z * sigmoid(z)"),
    ("feed_forward", NETWORK.format("silu(up) @ w2.T"), "gate"),
    ("feed_forward", NETWORK.format("silu(gate) @ w2.T"), "up is missing"),
    ("feed_forward", NETWORK.format("(gate * up) @ w2.T"), "silu is missing"),
    ("feed_forward", NETWORK.format("silu(gate * up) @ w2.T"), "silu is applied to the product"),
    ("feed_forward", NETWORK.format("(silu(gate) * up) @ w2"), "w2 is not transposed"),
    ("feed_forward", NETWORK.format("x + (silu(gate) * up) @ w2.T"), "the residual is added outside"),
    ("merge", MERGE.format("_, i = max(pairs)"), "highest rank first"),
    (
        "merge",
        MERGE.format("_, i = min(pairs); parts[i:i+2] = [parts[i] + parts[i+1]]; return [ranks[p] for p in parts]"),
        "joins one pair and stops",
    ),
    ("merge", MERGE.format("_, i = min(pairs, key=lambda pair: (pair[0], -pair[1]))"), "rightmost first"),
    ("merge", MERGE.format("_, i = pairs[0]"), "whatever its rank"),
    ("merge", "def merge(chunk, ranks): return [ranks[bytes([b])] for b in chunk]", "nothing is joined"),
    ("merge", "def merge(chunk, ranks): return ranks[chunk]", "KeyError"),
    ("merge", "def merge(chunk, ranks): pass", "is a `return` missing?"),
    ("merge", MERGE.replace("ranks[p]", "p").format("_, i = min(pairs)"), "return the id of each"),
    (
        "top_p",
        TOP_P.format("order = np.argsort(probabilities)[::-1]; keep = order[:np.searchsorted(sums, p) + 1]"),
        "it keeps the highest ids",
    ),
    ("merge", "def merge(chunk, ranks): return list(chunk)", "it returns [97, 98, 99, 100], expected [0, 8]"),
    ("merge", MERGE.format("_, i = min(pairs); i = i and i - 1"), "merge.py, line 8: KeyError"),
    ("top_p", TOP_P.format("keep = order[:max(1, (sums < p).sum())]"), "left out"),
    ("top_p", TOP_P.format("keep = order[:np.searchsorted(sums, p)]"), "crosses p is left out"),
    (
        "top_p",
        TOP_P.format("order = order[::-1]; keep = order[:np.searchsorted(np.cumsum(probabilities[order]), p) + 1]"),
        "starts from the least likely",
    ),
    (
        "top_p",
        TOP_P.format(
            "keep = order[:np.searchsorted(sums, p) + 1]; return np.where(np.isin(np.arange(len(order)), keep), "
            "probabilities, 0)"
        ),
        "must sum to 1",
    ),
    ("top_p", TOP_P.format("keep = order[:np.searchsorted(sums, p) + 2]"), "one token too many"),
    ("top_p", TOP_P.format("keep = np.arange(np.searchsorted(np.cumsum(probabilities), p) + 1)"), "order of ids"),
    ("top_p", TOP_P.format("keep = order[:np.searchsorted(sums, p) + 1]; return keep"), "shape is"),
    ("top_p", TOP_P.format("keep = order[:3]"), "3 tokens are left, expected 7"),
]
OTHER_WORDS = [  # right answers that are not written like plain.py
    ("rms_norm", NORM.format("weight * x * (np.square(x).mean(-1)[:, None] + eps) ** -0.5")),
    ("rms_norm", NORM.format("(x / np.sqrt(np.einsum('td,td->t', x, x)[:, None] / x.shape[1] + eps)) * weight[None]")),
    ("rms_norm", NORM.format("(x.astype('f4') / np.sqrt((x.astype('f4')**2).mean(-1, keepdims=True) + eps)) * weight")),
    ("rotate", ANGLES.format("positions[:, None] / c.rope_theta ** (np.arange(c.head_dim // 2) * 2 / c.head_dim)")),
    (
        "rotate",
        ANGLES.format(
            "np.array([[p * c.rope_theta ** (-2 * i / c.head_dim) for i in range(c.head_dim // 2)] for p in positions])"
        ),
    ),
    (
        "rotate",
        """
    def rotate(x, angle):  # as complex numbers
        n = x.shape[-1] // 2
        z = (x[..., :n] + 1j * x[..., n:]) * np.exp(1j * angle)[:, None]
        return np.concatenate([z.real, z.imag], -1)
    """,
    ),
    (
        "rotate",
        """
    def rotate(x, angle):  # as transformers has it
        n = x.shape[-1] // 2
        cos, sin = (np.tile(f(angle), 2)[:, None] for f in (np.cos, np.sin))
        return x * cos + np.concatenate([-x[..., n:], x[..., :n]], -1) * sin
    """,
    ),
    ("attention", HEAD.format("scores = scores - 1e9 * np.triu(np.ones((T, T)), 1); " + SOFTMAX)),
    (
        "attention",
        """
    def attention(q, k, v):  # one position after the other
        rows = []
        for t in range(len(q)):
            s = k[: t + 1] @ q[t] / q.shape[1] ** 0.5
            e = np.exp(s - s.max())
            rows.append(e / e.sum() @ v[: t + 1])
        return np.array(rows)
    """,
    ),
    ("feed_forward", NETWORK.format("(gate * sigmoid(gate) * up) @ w2.T")),
    ("feed_forward", NETWORK.format("(w2 @ (silu(w1 @ x.T) * (w3 @ x.T))).T")),
    ("merge", MERGE.format("i = min(range(len(pairs)), key=lambda n: pairs[n][0]); i = pairs[i][1]")),
    ("merge", "def merge(chunk, ranks):\n    from llama3.byte_pair import merge\n    return merge(chunk, ranks)"),
    ("top_p", TOP_P.format("keep = order[np.concatenate([[0], sums[:-1]]) < p]")),
    (
        "top_p",
        """
    def top_p(probabilities, p):  # one token after the other
        out, total = np.zeros_like(probabilities), 0.0
        for i in sorted(range(len(probabilities)), key=lambda i: -probabilities[i]):
            out[i], total = probabilities[i], total + probabilities[i]
            if total >= p:
                break
        return out / total
    """,
    ),
]
