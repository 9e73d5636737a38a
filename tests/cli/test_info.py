import json
import os
import subprocess
from pathlib import Path

import pytest

from llama3.cli import main
from llama3.llama import Llama
from tests.cli.running import PROGRAM
from tests.published import LLAMA_3_8B
from tests.tiny import random_tensors, tiny_config, write_hf, write_meta


def facts(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    assert main(["info", "--json", *argv]) == 0
    found: dict = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("write", [write_hf, write_meta])
def test_the_parts_add_up(tied: bool, write: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(tied_embeddings=tied and write is write_hf)
    tensors = random_tensors(config, dtype="bf16")
    assert callable(write)
    found = facts(capsys, str(write(tmp_path / "m", config, tensors)))
    parts = dict(found["parameters"])
    total = parts.pop("total")
    assert total == sum(parts.values()) == sum(tensor.size for tensor in tensors.values())
    assert found["dtypes"] == {"bfloat16": total}
    assert found["config"]["dim"] == config.dim and found["config"]["head_dim"] == config.head_dim
    assert found["layout"] == ("Hugging Face" if write is write_hf else "Meta")


def test_the_caches_bytes_are_those_that_a_model_takes(talker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llama = Llama.load(talker)
    cache = llama.model.new_cache(1, llama.config.max_seq_len)
    assert facts(capsys)["kv_cache_bytes"]["full_context"] == cache.k.nbytes + cache.v.nbytes


def test_the_screen_says_it_in_words(talker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    out, err = capsys.readouterr()
    assert str(talker) in out and "92,112" in out and "float32" in out and "2,048 tokens" in out
    assert "269 tokens of text, 256 special" in out and "278 <|eot_id|>" in out and err == ""
    assert "stops at          <|end_of_text|>, <|eot_id|>" in out


def test_a_model_without_a_tokenizer_is_described_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config()
    folder = write_hf(tmp_path / "m", config, random_tensors(config))
    assert main(["info", "--model", str(folder)]) == 0
    assert "no tokenizer is there" in capsys.readouterr().out


def test_the_published_8b_is_described_without_reading_it(tmp_path: Path) -> None:
    """Sixteen gigabytes of holes, described by a process that never grows to a fraction of that."""
    LLAMA_3_8B.write(tmp_path)
    with subprocess.Popen([*PROGRAM, "info", str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout and b"8,030,261,248" in process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0 and usage.ru_maxrss * 1024 < 0.5e9
