"""The list of exercises, and `start`, which writes a stub for the reader to fill in."""

from pathlib import Path
from typing import NamedTuple

from llama3.errors import RequestError


class Exercise(NamedTuple):
    """One exercise. Its file is NAME.py, and the module `exercises.NAME` holds what grades it."""

    page: int  # of the tour
    name: str
    functions: tuple[str, ...]  # that the reader writes
    about: str

    @property
    def file(self) -> str:
        return f"{self.name}.py"


EXERCISES = (
    Exercise(1, "merge", ("merge",), "byte-pair encoding: the bytes of a chunk to token ids"),
    Exercise(3, "rms_norm", ("rms_norm",), "RMSNorm: rows of one size"),
    Exercise(5, "rotate", ("rope_angles", "rotate"), "RoPE: the angle of each pair of channels, and the rotation"),
    Exercise(6, "attention", ("attention",), "one head: scores, mask, softmax, weighted sum"),
    Exercise(7, "feed_forward", ("feed_forward",), "SwiGLU: the feed-forward network of one layer"),
    Exercise(9, "top_p", ("top_p",), "top-p: the most likely tokens that together reach probability p"),
)


def find(word: str) -> Exercise:
    """The exercise of a page number or of a name. Raises RequestError, which lists them."""
    for exercise in EXERCISES:
        if word in (str(exercise.page), exercise.name):
            return exercise
    listed = ", ".join(f"{e.page} ({e.name})" for e in EXERCISES)
    raise RequestError(f"page {word!r} of the tour has no exercise; these have one: {listed}")


def start(exercise: Exercise, folder: Path) -> Path:
    """Write the stub of an exercise into a folder -> its path.

    Raises RequestError if the file exists already, since it may hold somebody's work, or if it cannot be written.
    """
    path = folder / exercise.file
    stub = Path(__file__).with_name("stubs") / exercise.file
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(stub.read_text(encoding="utf-8"))
    except FileExistsError:
        raise RequestError(f"{path} exists already; check it with: llama3 tour check {exercise.page}") from None
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}; go to a folder of your own first") from None
    return path
