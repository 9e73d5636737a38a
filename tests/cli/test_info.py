"""`llama3 info`: sizes and counts add up, as JSON and as text, without reading the weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llama3.cli import main
from llama3.llama import Llama
from tests.published import LLAMA_3_8B
from tests.quantised_files import BY_NAME
from tests.quantised_files import write as write_quantised
from tests.tiny import TINY_VOCAB, random_tensors, tiny_config, write_hf, write_meta, write_tokenizer


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
    assert "269 text tokens, 256 special tokens" in out and "278 <|eot_id|>" in out and err == ""
    assert "stops at          <|end_of_text|>, <|eot_id|>" in out


def test_a_model_without_a_tokenizer_is_described_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config()
    folder = write_hf(tmp_path / "m", config, random_tensors(config))
    assert main(["info", "--model", str(folder)]) == 0
    assert "there is no tokenizer" in capsys.readouterr().out


CHATML = "<|im_start|>{{ role }}\n{{ content }}<|im_end|>"
LLAMA3 = "<|start_header_id|>{{ role }}<|end_header_id|>\n\n{{ content }}<|eot_id|>"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "Llama 3's format; the folder has no chat template."),
        (LLAMA3, "Llama 3's format."),
        (CHATML, "refused: the chat template is not Llama 3's (it has <|im_start|>, <|im_end|>); raw prompts"),
    ],
)
def test_whether_chats_work_is_said(
    template: str | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(vocab_size=TINY_VOCAB)
    folder = write_tokenizer(write_hf(tmp_path, config, random_tensors(config)))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    assert main(["info", str(folder)]) == 0
    assert f"chat {says}" in " ".join(capsys.readouterr().out.split()) + "."
    found = facts(capsys, str(folder))["chat_template"]
    assert found["found"] == (template is not None) and bool(found["not_llama_3s"]) == (template == CHATML)


@pytest.mark.skipif(not Path("/proc").exists(), reason="only Linux has /proc, which tells a process's peak memory")
def test_the_published_8b_is_described_without_reading_it(tmp_path: Path) -> None:
    """The files are sparse, 16 GB long; the process that describes them must stay below 0.3 GB."""
    LLAMA_3_8B.write(tmp_path)
    # The process reports its own peak memory, since the peak that its parent sees includes the parent's before exec.
    code = (
        "import sys; from llama3.cli import main; main(['info', sys.argv[1]]); print(open('/proc/self/status').read())"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "8,030,261,248" in run.stdout
    (peak,) = (int(line.split()[1]) for line in run.stdout.splitlines() if line.startswith("VmHWM"))  # kB
    assert peak < 0.3e6


def test_a_quantised_models_scheme_and_bits_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, tensors = write_quantised(tmp_path / "q", BY_NAME["int8 by row"])
    found = facts(capsys, str(folder))
    assert found["quantised"]["scheme"] == "compressed-tensors int-quantized, int8, a scale for each row"
    assert found["quantised"]["others_round_activations_to"] == "int8, scaled at each step"
    assert set(found["dtypes"]) == {"int8", "float32"}
    assert found["parameters"]["total"] == sum(tensor.size for tensor in tensors.values())
    scales = 4 * sum(len(tensor) for name, tensor in tensors.items() if ".mlp." in name)
    assert found["bytes_of"]["feed_forward"] == found["parameters"]["feed_forward"] + scales
    assert main(["info", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "bits each" in shown and "programs that compute in 8 bits round them, too" in shown
