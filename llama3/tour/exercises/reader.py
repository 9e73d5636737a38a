"""A reader's file: runs it as a module, and says where in it something went wrong."""

import sys
import types
from pathlib import Path
from types import FrameType

LONGEST = 300  # characters of an exception's message


class Reader:
    """The reader's file: what it defines, and where in it something went wrong."""

    def __init__(self, path: Path):
        self.path = path.resolve()
        self.module = types.ModuleType(f"exercise_{path.stem}")  # a file may be called numpy.py
        self.module.__file__ = str(self.path)

    def run(self) -> None:
        """Run the file as a module. Its neighbours can be imported."""
        sys.path.append(str(self.path.parent))
        sys.modules[self.module.__name__] = self.module
        exec(compile(self.path.read_bytes(), self.path, "exec"), vars(self.module))

    def line(self, frame: FrameType | None) -> str:
        """ "rotate.py, line 12" for the innermost frame in the file; "" if there is none."""
        while frame is not None and frame.f_code.co_filename != str(self.path):
            frame = frame.f_back
        return "" if frame is None else f"{self.path.name}, line {frame.f_lineno}"

    def error(self, error: BaseException) -> str:
        """An exception in one line, with the reader's own line number."""
        text = " ".join(str(error).split())[:LONGEST]
        if isinstance(error, SyntaxError) and error.filename == str(self.path):
            return f"{self.path.name}, line {error.lineno}: {type(error).__name__}: {error.msg}"
        at, trace = "", error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == str(self.path):
                at = f"{self.path.name}, line {trace.tb_lineno}"
            trace = trace.tb_next
        if isinstance(error, NotImplementedError) and not text:
            return f"{at or self.path.name}: not written yet: replace `raise NotImplementedError`"
        return f"{at or self.path.name}: {type(error).__name__}" + (f": {text}" if text else "")
