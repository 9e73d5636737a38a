"""Writes `tests/references/*.safetensors` again: `python -m tests.oracle.make_references`.

For each case, transformers loads the checkpoint from a folder, like any other, and computes in float32.
"""

import tempfile
from pathlib import Path

from llama3.parity import Reference, save_reference
from llama3.parity.write_reference import load, reference_of
from tests.reference_cases import CASES, REFERENCES, Case


def make(case: Case, folder: Path) -> Reference:
    tensors = case.tensors()
    model = load(case.write(folder, tensors))
    return reference_of(model, case.tokens(), case.label(tensors), case.positions, case.activations)


def main() -> None:
    REFERENCES.mkdir(exist_ok=True)
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            save_reference(case.path, make(case, Path(folder)))
        print(f"{case.path.name}: {case.path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
