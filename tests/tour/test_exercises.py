"""The exercises: plain.py solves each of them, stubs do not, and typical wrong answers are told what is wrong."""

import textwrap
from importlib import import_module
from pathlib import Path

import pytest

from llama3.tour.exercises.catalogue import EXERCISES, Exercise, find
from llama3.tour.exercises.grade import Line, grade, grade_part
from llama3.tour.exercises.reader import Reader
from tests.tour.answers import OTHER_WORDS, WRONG

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


@pytest.mark.parametrize(("name", "source", "says"), WRONG, ids=[f"{name}: {says}" for name, _, says in WRONG])
def test_a_wrong_answer_is_told_what_is_wrong(name: str, source: str, says: str, tmp_path: Path):
    (line,) = small(tmp_path, name, source)
    assert line[0] in ("wrong", "error") and says in line[1]


@pytest.mark.parametrize(("name", "source"), OTHER_WORDS)
def test_a_right_answer_in_other_words_passes(name: str, source: str, tmp_path: Path):
    ((mark, text),) = small(tmp_path, name, source)
    assert mark == "right", text


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
