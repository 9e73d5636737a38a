"""The exercises: plain.py solves each of them, stubs do not, and typical wrong answers are told what is wrong."""

import textwrap
from importlib import import_module
from pathlib import Path

import pytest

from llama3.tour.exercises.catalogue import EXERCISES, Exercise, find
from llama3.tour.exercises.grade import Line, grade, grade_part
from llama3.tour.exercises.reader import Reader

ROOT = Path(__file__).parents[2]
PLAIN = (ROOT / "llama3" / "plain.py").read_text()
# Three functions of the exercises are a line or two inside plain.py's own functions.
JOINED = {
    "attention": "def attention(q, k, v): return softmax(attention_scores(q, k)) @ v",
    "feed_forward": "def feed_forward(x, w1, w2, w3): return linear(silu(linear(x, w1)) * linear(x, w3), w2)",
    "top_p": """
        def top_p(probabilities, p):
            ids, weights = survivors(np.log(probabilities), SamplingParams(temperature=1, top_p=p))
            out = np.zeros(len(probabilities))
            out[ids] = weights / weights.sum()
            return out
        """,
}


def solution(exercise: Exercise) -> str:
    return PLAIN + textwrap.dedent(JOINED.get(exercise.name, ""))


def write(folder: Path, exercise: Exercise, source: str) -> Reader:
    path = folder / exercise.file
    path.write_text("import numpy as np\n" + textwrap.dedent(source))
    return Reader(path)


def small(folder: Path, name: str, source: str) -> list[Line]:
    """The lines of the report that the small inputs give, without the demo."""
    exercise = find(name)
    reader = write(folder, exercise, source)
    reader.run()
    parts = import_module(f"llama3.tour.exercises.{exercise.name}").PARTS
    functions = vars(reader.module)
    return [grade_part(part, functions[part.name], reader) for part in parts if part.name in functions]


@pytest.fixture(autouse=True)
def clean_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader's file becomes a module, and its folder is searched for modules."""
    import sys

    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_plain_solves_every_exercise_also_inside_the_demo(exercise: Exercise, tmp_path: Path):
    lines = list(grade(exercise, write(tmp_path, exercise, solution(exercise))))
    marks = [mark for mark, _ in lines]
    assert set(marks) <= {"right", ""} and marks.count("right") == len(exercise.functions) + (
        2 if exercise.page == 1 else 1
    )


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_a_stub_is_not_written_yet_and_names_what_plain_has(exercise: Exercise, tmp_path: Path):
    stub = (ROOT / "llama3" / "tour" / "exercises" / "stubs" / exercise.file).read_text()
    lines = list(grade(exercise, write(tmp_path, exercise, stub)))
    assert len(lines) == len(exercise.functions)
    assert all(mark == "error" and "not written yet" in text for mark, text in lines)
    assert f"llama3 tour check {exercise.page}" in stub.splitlines()[0]


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


@pytest.mark.parametrize(("name", "source", "says"), WRONG, ids=[f"{name}: {says}" for name, _, says in WRONG])
def test_a_wrong_answer_is_told_what_is_wrong(name: str, source: str, says: str, tmp_path: Path):
    (line,) = small(tmp_path, name, source)
    assert line[0] in ("wrong", "error") and says in line[1]


def test_every_exercise_has_at_least_five_wrong_answers_here():
    for exercise in EXERCISES:
        assert len({says for name, _, says in WRONG if name == exercise.name}) >= 5


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_no_two_known_mistakes_of_an_exercise_are_said_alike(exercise: Exercise, tmp_path: Path):
    """Each planted mistake gets its own sentence, so that no two have the same results in every case."""
    for part in import_module(f"llama3.tour.exercises.{exercise.name}").PARTS:
        for sentence, function in part.mistakes.items():
            mark, text = grade_part(part, function, Reader(tmp_path / exercise.file))
            assert mark in ("wrong", "error") and sentence in text
