"""The model of these tests, "talker": random weights and a small vocabulary; its answers are letters and never end."""

import base64
import importlib.util
import os
from pathlib import Path

import pytest

from llama3.tokenizer_file import LLAMA3_SPECIAL
from tests.tiny import random_tensors, tiny_config, write_hf

if importlib.util.find_spec("pty") is None:  # Windows: tests/cli/running.py needs a pseudo-terminal
    collect_ignore = ["test_batch.py", "test_chat.py", "test_generate.py", "test_main.py", "test_tokenize.py"]

WORDS = ("What", " is", " Ro", "PE", "He", "ll", "o", " the")


def ranks() -> list[bytes]:
    """The tokens by rank: 256 bytes, then the merges that lead to WORDS."""
    tokens = [bytes([byte]) for byte in range(256)]
    for word in WORDS:
        for end in range(2, len(word) + 1):
            if word[:end].encode() not in tokens:
                tokens.append(word[:end].encode())
    return tokens


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the talker's checkpoint."""
    tokens = ranks()
    config = tiny_config(vocab_size=len(tokens) + len(LLAMA3_SPECIAL), max_seq_len=2048)
    tensors = random_tensors(config, seed=1)
    output = tensors["lm_head.weight"]
    for token, text in enumerate([*tokens, *[b"\0"] * len(LLAMA3_SPECIAL)]):
        output[token] *= 10 if text.decode("latin-1").isprintable() and text.isascii() else 0
    folder = write_hf(tmp_path_factory.mktemp("models") / "talker", config, tensors)
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    (folder / "tokenizer.model").write_text("".join(lines))
    return folder


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, talker: Path) -> None:
    """Remove the user's environment variables; the talker is the model unless a test chooses another one."""
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "")  # so that pytest removes it again if the program sets it
    for name in list(os.environ):
        if name.startswith(("LLAMA3_", "HF_")) or name in ("NO_COLOR", "COLUMNS"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LLAMA3_MODEL", str(talker))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("sys.stdin", None)
