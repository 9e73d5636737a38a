"""What the pages say is so: links lead somewhere, code runs and prints what is shown, tables agree with the code."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from docs.make_picture import PICTURE, picture
from docs.make_tour import SOURCES
from llama3 import Llama
from llama3.limits import Limits
from llama3.parity import Reference, save_reference
from tests.pages import PAGES, ROOT, Block, anchors, blocks, links, name_of, prose
from tests.test_imports import LAYER

DOCS = ROOT / "docs"
BINARIES = (".venv/bin/llama3", ".venv/bin/python")
# Commands that no test here runs, and why. A path in a reason names the test that covers the command.
NOT_RUN = {
    ".venv/bin/llama3 --model meta-llama/": "needs Meta's gated weights",
    ".venv/bin/llama3 download meta-llama/": "needs Meta's gated weights; tests/checkpoint/test_transfer.py",
    ".venv/bin/llama3 batch --to - - <": "needs a shell; tests/cli/test_batch.py",
    ".venv/bin/llama3 --device cpu:0-1 --model FOLDER": "the reader's folder; tests/tensor_parallel/test_ranks.py",
    ".venv/bin/llama3 --device cuda": "needs a GPU; tests/cuda/test_load.py runs it emulated",
    ".venv/bin/llama3 serve": "does not end by itself; tests/server/test_main.py",
    ".venv/bin/python benchmarks/gpu": "needs a GPU; tests/oracle/test_gpu_benchmark.py runs it with stand-ins",
    ".venv/bin/python -m llama3.parity.write_reference": "needs torch; tests/oracle/test_parity_page.py",
    ".venv/bin/llama3 reference theirs.safetensors --from transformers": "needs torch; tests/oracle/parity has it",
    ".venv/bin/llama3 compare right.safetensors": "the files are the reader's; tests/parity/test_explain.py",
    ".venv/bin/llama3 compare demo.safetensors": "compares files made with torch; tests/oracle/test_parity_page.py",
    ".venv/bin/llama3 inspect": "writes a page; tests/cli/test_inspect.py runs these",
    ".venv/bin/llama3 tour start": "writes a file; tests/cli/test_tour.py",
    ".venv/bin/llama3 tour check": "grades a file; tests/cli/test_tour.py",
    ".venv/bin/python docs/make_picture.py": "writes a file of this tree; a test below compares it",
    ".venv/bin/python -m docs.make_tour": "writes files of this tree; tests/test_tour.py compares them",
    ".venv/bin/python -m docs.make_reference": "writes files of this tree; tests/test_docs_reference.py compares them",
}
MAY_FAIL = {
    ".venv/bin/llama3 doctor": (0, 1),  # 1: there is no GPU
    ".venv/bin/llama3 compare full.safetensors --model demo-8bit": (3,),  # rounded weights: above the limit
}
NOT_EXECUTED = {
    "docs/server.md": "needs a server and the package openai; tests/server/clients/test_server_page.py",
    "docs/api.md": "signatures; tests/test_docs_reference.py",
    **{f"docs/tour/{source.name}": "parts of files; tests/test_tour.py" for source in SOURCES},
}


# ---- links


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_to_a_heading(page: Path):
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_can_be_reached_from_the_readme():
    reached, left = set(), [ROOT / "README.md"]
    while left:
        page = left.pop()
        if page not in reached:
            reached.add(page)
            targets = [(page.parent / link.partition("#")[0]).resolve() for link in links(page)]
            left += [target for target in targets if target.suffix == ".md"]
    assert set(PAGES) <= reached


# ---- commands


def commands(page: Path) -> list[tuple[Block, str]]:
    """Those that run a program of this project, also behind variables of the environment."""
    found = [(block, command) for block in blocks(page) if block.language == "sh" for command in block.commands]
    return [(block, command) for block, command in found if any(name in command for name in BINARIES)]


COMMANDS = [(page, block, command) for page in PAGES for block, command in commands(page)]
RUN = [case for case in COMMANDS if not any(start in case[2] for start in NOT_RUN)]


def test_every_reason_not_to_run_a_command_holds():
    for start, reason in NOT_RUN.items():
        assert any(start in command for *_, command in COMMANDS), f"no page has {start}"
        assert all((ROOT / path).is_file() for path in re.findall(r"tests/[\w/]+\.py", reason)), reason


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with links to what this checkout holds, so that what a command writes stays out of it."""
    folder = tmp_path_factory.mktemp("checkout")
    for path in ROOT.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.parametrize(("page", "block", "command"), RUN, ids=[f"{name_of(page)}: {c}" for page, _, c in RUN])
def test_a_command_runs_and_prints_what_the_page_shows(page: Path, block: Block, command: str, checkout: Path):
    argv = shlex.split(command)
    program = [sys.executable, *(["-m", "llama3.cli"] if argv[0] == BINARIES[0] else [])]
    shown = block.output if block.commands[-1] == command else None
    seed = re.search(r"seed (\d+)", shown or "")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA3_", "HF_"))}
    ran = subprocess.run(
        [*program, *argv[1:], *(["--seed", seed[1]] if seed else [])],
        cwd=checkout,
        env={**environment, "PYTHONPATH": str(ROOT), "LLAMA3_DEVICE": "cpu"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if seed else subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert ran.returncode in MAY_FAIL.get(command, (0,)), ran.stdout + str(ran.stderr)
    if shown is not None:
        assert words(ran.stdout) == words(shown)


def words(text: str) -> list[str]:
    """The words of an output, without its times. A page may break its lines elsewhere."""
    return re.sub(r"after [\d.]+ s", "after - s", re.sub(r"[\d,.]+/s", "-/s", text)).split()


def test_every_extra_that_a_page_installs_is_there():
    extras = re.findall(r"^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    named = [name for page in PAGES for name in re.findall(r"'\.\[([\w-]+)\]'", page.read_text(encoding="utf-8"))]
    assert named and set(named) <= set(extras)


# ---- Python


def llama_cpp_file(tokens: np.ndarray, logits: np.ndarray) -> bytes:
    """What llama-perplexity saves of one chunk: the log-probabilities of its second half in 16 bits."""
    high = logits.max(axis=1, keepdims=True)  # (n, 1)
    low = np.maximum(logits.min(axis=1, keepdims=True), high - 16)  # (n, 1)
    rows = np.zeros(len(logits), [("scale", "<f4"), ("least", "<f4"), ("numbers", "<u2", logits.shape[1])])
    rows["scale"] = ((high - low) / 65535)[:, 0]
    rows["least"] = (low - high - np.log(np.exp(logits - high).sum(axis=1, keepdims=True)))[:, 0]
    rows["numbers"] = np.rint(np.maximum(logits - low, 0) / (high - low) * 65535)
    sizes = np.array([len(tokens), logits.shape[1], 1], "<i4")
    return b"_logits_" + sizes.tobytes() + tokens.astype("<i4").tobytes() + rows.tobytes()


def prepared(page: Path, folder: Path) -> dict[str, Any]:
    """The names that a page's Python takes for granted."""
    if page.name != "parity.md":
        return {}
    llama, tokens, seen = Llama.load(), [1792, 421], {}
    logits = llama.logits(tokens, lambda name, value: seen.update({name: value.copy()}))
    reference = Reference(
        tokens=np.array(tokens, np.int64),
        logits=logits,
        positions=np.arange(len(tokens)),
        config=llama.config,
        dtype="float32",
        producer="llama3",
        model="demo",
        activations=seen,
    )
    save_reference(folder / "reference.safetensors", reference)
    text = np.arange(100, 117)
    rows = llama.logits([llama.tokenizer.bos_id, *text[1:]])[8:16]
    (folder / "base.bin").write_bytes(llama_cpp_file(text, rows))
    x = seen["layers.0.attention"]
    return {"my_llama": lambda _: logits, "tokens": tokens, "x": x, "logits": np.zeros((2, 128_256), np.float32)}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_its_python_runs_and_prints_what_its_comments_say(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = [block.text for block in blocks(page) if block.language == "python"]
    if name_of(page) in NOT_EXECUTED:
        assert code and (ROOT / NOT_EXECUTED[name_of(page)].rpartition(" ")[2]).is_file()
        return
    monkeypatch.chdir(tmp_path if page.name in ("parity.md", "inspect.md") else ROOT)  # these pages write files
    names = prepared(page, tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for text in code:
            exec(compile(text, name_of(page), "exec"), names)
        for test in [value for name, value in names.items() if name.startswith("test_")]:
            test()
    for said in re.findall(r"# -> (.+)$", "\n".join(code), re.M):
        assert re.search(".*".join(map(re.escape, said.split("..."))), printed.getvalue()), said


# ---- tables and the picture


def test_the_server_s_limits_are_the_tables():
    rows = re.findall(r"\| ([\d,]+) \| `--(\w+) (?:(\w+)=)?(\d+)` \|", (DOCS / "server.md").read_text(encoding="utf-8"))
    assert all(default.replace(",", "") == value for default, *_, value in rows)
    table = {name or flag: int(value) for _, flag, name, value in rows}
    assert table == {"slots": 4, "queue": 32, **asdict(Limits())}
    text = (ROOT / "llama3" / "cli" / "serve.py").read_text(encoding="utf-8")
    assert 'option("--slots"' in text and "default=4" in text and "default=32" in text


def test_the_architecture_has_the_floors_that_imports_keep_to():
    rows = re.findall(r"^\| \d+ \| (`.+`) \|$", (DOCS / "architecture.md").read_text(encoding="utf-8"), re.M)
    named = [name for names in rows for name in re.findall(r"`(\w+)`", names)]
    floors = [LAYER[name] for name in named]
    assert set(named) == LAYER.keys() - {"llama3", "__main__"}
    assert floors == sorted(floors)


def test_the_picture_is_the_one_that_its_script_draws():
    assert PICTURE.read_text(encoding="utf-8") == picture(), "run: python docs/make_picture.py"
    named = re.findall(r">((?:model/)?[\w, /.]+\.py)<", picture())
    files = {name.strip() for names in named for name in names.split(",")}
    assert len(files) > 10 and all((ROOT / "llama3" / name).is_file() for name in files)


def test_no_line_of_prose_is_left_unfinished():
    for page in PAGES:
        assert not re.search(r"TODO|FIXME|XXX|@@", prose(page)), name_of(page)
