"""The shape comments of plain.py and model/ are true: each is evaluated during a real forward pass.

A shape comment ends the line of an assignment: `q = ...  # (T, n_heads, head_dim)`. It is read as Python, with the
model's configuration and the function's own variables as names, and compared with the shape of what was assigned.
"""

import ast
import inspect
import re
import sys
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest

from llama3 import Llama, SamplingParams, plain
from llama3.config import RopeScaling
from llama3.cpu_model import CpuModel
from llama3.model.batch import Batch
from llama3.model.linear import linear
from llama3.model.lora import LoraPair
from llama3.model.quantised import QuantisedMatrix
from tests.tiny import random_tensors, tiny_config, write_hf

ROOT = Path(__file__).parents[1]
FILES = {str(path): path for path in [ROOT / "llama3" / "plain.py", *(ROOT / "llama3" / "model").rglob("*.py")]}
COMMENT = re.compile(r"#[^#]*?(\((?:[^()]|\([^()]*\))*\))")
Place = tuple[str, int]


def shape_comments(path: Path) -> dict[int, tuple[list[str], str]]:
    """Line -> (the names it assigns, the shape that its comment states), for assignments of one expression."""
    lines = path.read_text().splitlines()
    found = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Assign):
            continue
        comment = COMMENT.search(lines[node.end_lineno - 1][node.end_col_offset :])
        if comment and is_shape(comment[1]):
            targets = node.targets[0].elts if isinstance(node.targets[0], ast.Tuple) else node.targets
            found[node.lineno] = ([ast.unparse(target) for target in targets], comment[1])
    return found


def is_shape(text: str) -> bool:
    """(T, dim) is one, (Shazeer 2020) and (5 inputs) are none."""
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError:
        return False
    return isinstance(tree, ast.Tuple)


class Checker:
    """Traces functions of the files and evaluates each shape comment after its line has run."""

    def __init__(self, names: dict[str, int]):
        self.names = names
        self.comments = {file: shape_comments(path) for file, path in FILES.items()}
        self.true: Counter[Place] = Counter()
        self.wrong: list[str] = []

    def __enter__(self) -> "Checker":
        self.before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *error: Any) -> None:
        sys.settrace(self.before)

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename not in self.comments or frame.f_code.co_name.startswith("<"):
            return None
        previous = frame.f_lineno

        def local(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal previous
            if event == "exception":
                return None  # the line has assigned nothing
            if event == "return" or previous != frame.f_lineno:
                self._check(frame, previous)
                previous = frame.f_lineno
            return local

        return local

    def _check(self, frame: FrameType, line: int) -> None:
        file = frame.f_code.co_filename
        if line not in self.comments[file]:
            return
        targets, shape = self.comments[file][line]
        scope = self.names | visible(frame)
        for target in targets:
            value = eval(target, frame.f_globals, scope)
            expected = tuple(int(n) for n in eval(shape, frame.f_globals, scope))
            if np.shape(value) == expected:
                self.true[file, line] += 1
            else:
                place = f"{Path(file).name}:{line}"
                self.wrong.append(f"{place}: {target} is {np.shape(value)}, the comment says {shape} = {expected}")


def visible(frame: FrameType) -> dict[str, Any]:
    """The function's variables; and T, the rows, and heads, where x comes in as an argument (T, ...)."""
    scope = dict(frame.f_locals)
    x = scope.get("x")
    if isinstance(x, np.ndarray) and "T" not in scope:
        scope["T"] = len(x)
        scope |= {"heads": x.shape[1]} if x.ndim == 3 else {}
    return scope


def run_everything(tmp_path: Path) -> Checker:
    """plain.forward and plain.sample, and the NumPy model with a prompt, decoding, scaled RoPE and an adapter."""
    config = tiny_config(n_heads=4, n_kv_heads=2, max_seq_len=512, rope_scaling=RopeScaling(original_max_seq_len=64))
    llama = Llama.load(write_hf(tmp_path, config, random_tensors(config)))
    weights, c = llama.checkpoint.weights, config
    pair = LoraPair(np.ones((2, c.dim), np.float32), np.ones((c.n_heads * c.head_dim, 2), np.float32))
    checker = Checker(vars(config))
    tokens = (np.arange(300) % c.vocab_size).astype(np.int32)
    with checker:
        logits = plain.forward(tokens[:50], config, weights)[-1]
        plain.sample(logits, SamplingParams(top_k=9, top_p=0.9, min_p=0.01, frequency_penalty=1), 0.5, [1], [2, 3])
        CpuModel(config, weights, rope_angles="float32")
        model = CpuModel(config, weights, {"a": [{"wq": pair}] * c.n_layers})
        cache = model.new_cache(2, 512)
        batch = Batch.of([(0, tokens), (1, tokens[:3])], adapters=["a", None])
        model.forward(batch, cache, batch.last_rows)
        model.forward(Batch.of([(0, [1]), (1, [2])]), cache, np.array([1]))
        codes = np.zeros((64, 32), np.uint8)
        linear(np.ones((2, 64), np.float32), QuantisedMatrix((64, 64), 4, codes, (1, 32), np.ones((64, 2), np.float32)))
        linear(np.ones((2, 32), np.float32), QuantisedMatrix((64, 32), 8, codes, (1, 32), np.ones((64, 1), np.float32)))
    return checker


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Checker:
    return run_everything(tmp_path_factory.mktemp("shapes"))


def test_every_shape_comment_is_true(checker: Checker):
    assert checker.wrong == []


def test_no_shape_comment_is_skipped(checker: Checker):
    """Fields of dataclasses aside, which the last test reads, every line with a shape comment has been evaluated."""
    places = set()
    for file, path in FILES.items():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            comment = COMMENT.search(line)
            if comment and is_shape(comment[1]) and not re.match(r"    \w+: ", line):
                places.add((file, number))
    assert len(places) >= 50
    missed = sorted(
        f"{Path(file).name}:{line}: {FILES[file].read_text().splitlines()[line - 1]}"
        for file, line in places - set(checker.true)
    )
    assert missed == []


def test_a_wrong_comment_is_noticed(checker: Checker, tmp_path: Path):
    """The checker itself: the same lines with one letter changed."""
    source = "def f(x):\n    y = x.T  # (dim, T)\n    z = x[0]  # (T,)\n    return y, z\n"
    file = tmp_path / "wrong.py"
    file.write_text(source)
    scope: dict[str, Any] = {}
    code: CodeType = compile(source, str(file), "exec")
    exec(code, scope)
    other = Checker({"dim": 5})
    other.comments = {str(file): shape_comments(file)}
    with other:
        scope["f"](np.ones((3, 5)))
    assert [key[1] for key in other.true] == [2] and len(other.wrong) == 1 and ":3:" in other.wrong[0]


def test_the_fields_of_weights_and_batches_have_the_shapes_in_their_comments(tmp_path: Path):
    config = tiny_config(n_heads=4, n_kv_heads=2)
    weights = Llama.load(write_hf(tmp_path, config, random_tensors(config))).checkpoint.weights
    batch = Batch.of([(0, [1, 2]), (1, [3])], adapters=["a", None])
    names = vars(config) | {"T": 3, "n_sequences": 2}
    checked = 0
    for record in (weights, weights.layers[0], batch):
        source = inspect.getsource(type(record))
        for field, shape in re.findall(r"^    (\w+): .*#\s*(\([^)]*\))", source, re.M):
            assert np.shape(getattr(record, field)) == eval(shape, {}, names), (type(record), field)
            checked += 1
    assert checked == 3 + 9 + 4
