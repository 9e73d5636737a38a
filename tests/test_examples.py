"""Every program in docs/examples is short, runs, and prints what it promises."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "examples"
PRINTS = {  # compare_torch.py needs torch: tests/oracle/test_examples.py
    "embed.py": ["rotary position embedding", "ended by stop", "' keys'", "refused: top_p is 2"],
    "threads.py": ["What is RoPE?", "the same as one after the other: True"],
    "json_and_tools.py": ["the KV cache -> ", "get_weather({'city': 'Paris'})", "{'city': 'Oslo'}"],
    "adapters.py": ["plain: RoPE, rotary", "rhyme: Turn query and key", "refused: there is no adapter 'sonnet'"],
    "minimal_generator.py": ["rotary"],
}
LINES = {"minimal_generator.py": 60}  # of the others 50
EXAMPLES = sorted(file.name for file in FOLDER.glob("*.py") if file.name != "compare_torch.py")


def run(name: str) -> str:
    """The program's standard output. It runs in a process of its own, without variables of whoever runs the tests."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LLAMA3_", "HF_"))}
    command = [sys.executable, str(FOLDER / name)]
    environment["PYTHONPATH"] = str(ROOT)
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_promises(name: str):
    printed = run(name)
    assert all(text in printed for text in PRINTS[name]), printed


@pytest.mark.parametrize("name", [*EXAMPLES, "compare_torch.py"])
def test_an_example_is_short(name: str):
    assert len((FOLDER / name).read_text(encoding="utf-8").splitlines()) <= LINES.get(name, 50)
