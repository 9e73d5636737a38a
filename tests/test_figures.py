"""Every number in the prose of README and of the pages that claim something has a source, and equals it.

`FIGURES` names the text of a page and, for each number in it, its source: a result file in benchmarks/results, a
literal in a test, or a computation. A number that no text covers fails the test, unless it is part of a name such as
"Llama 3.1".
"""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from gpu_floor import LLAMA3_8B, weights_read

from llama3.checkpoint import load_folder
from llama3.config import MAX_CONTEXT
from llama3.cuda import linear, memory, quantised
from llama3.engine import MAX_TOKENS
from llama3.inspect import run as inspect_run
from llama3.parity import compact
from llama3.parity.report import RTOL
from llama3.server import inspect_api
from tests.pages import ROOT, prose

NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?<!,)")
NAMES = re.compile(
    r"`[^`]*`|\]\([^)]*\)|<[^>]*>"  # code, links' targets
    r"|Llama 3(\.\d)?|llama3|\b(3\.1|3\.2|\d+B)\b|bf16|[fp]{2}(16|32)|float(32|64)|Python 3\.11"
    r"|A100|RTX (30|5090)|Zen 3|stories260K|Random123|PEP-8|compute capability 8\.0"
    r"|sm_80, 89, 90, 100 and 120|kill -9|\b(200|429|503)\b(?= *[;|]|, then)"
)
Source = Callable[[str], bool]  # is the number, as the page writes it, the source's?


def equals(value: float) -> Source:
    """The value, rounded to the digits that the page gives."""

    def check(number: str) -> bool:
        number = number.replace(",", "")
        if "e" in number:
            digits = len(number.partition("e")[0].partition(".")[2])
            return float(number) == float(f"{value:.{digits}e}")
        return float(number) == round(value, len(number.partition(".")[2]))

    return check


def about(value: float, to: int) -> Source:
    """The value, rounded to tens or hundreds."""
    return lambda number: float(number.replace(",", "")) == to * round(value / to)


def within(least: float, most: float) -> Source:
    return lambda number: least <= float(number) <= most


@cache
def load(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))


def result(name: str, path: str, of: Callable[[Any], float] = float) -> Source:
    """A figure of a result file. path: keys with slashes between; of: what is made of what stands there."""
    value = load(name)
    for key in path.split("/"):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return equals(of(value))


def in_file(file: str, literal: str | None = None) -> Source:
    """A literal of a test: as the page writes the number, or as it is given here, where it must stand in the test."""

    def check(number: str) -> bool:
        text = (ROOT / file).read_text(encoding="utf-8")
        value = number.replace(",", "")
        return literal in text and value in literal.replace("_", "") if literal else value in text.replace("_", "")

    return check


def sampling(options: dict[str, float]) -> Source:
    rows = [row for row in load("sampler-2026-11-22.json")["results"] if row["logits"] == "flat"]
    return equals(next(row["wall_ms"]["median"] for row in rows if row["options"] == options))


CPU, STARTUP, PARITY = "cpu-rows-cascade-lake-2026-11-28.json", "startup-2026-11-22.json", "parity-2026-11-27.json"
NUMBA, NUMBA_SCIPY = (f"startup-numba{scipy}-cascade-lake-2026-11-28.json" for scipy in ("", "-scipy"))
INSPECT_PAGE = "inspect-page-cascade-lake-2026-11-28.json"
TRACE_OFF = "trace-off-cascade-lake-2026-11-28.json"
SERVER, FLOAT64 = "server-threads-2026-11-26.json", "float64-cascade-lake-2026-11-27.json"
LORA = [load(f"lora{again}-2026-11-26.json")["ratio_median"] for again in ("", "-again-1", "-again-2", "-again-3")]
ROUNDING = "rounding-cascade-lake-2026-11-27.json"
ROUNDED = load(ROUNDING)["models"].values()
DEMO_CONFIG = load_folder(ROOT / "weights" / "demo").config
ROWS = (1, 4, 16, 32)
FULL_8B = load("full-8b-cascade-lake-2026-11-27.json")["measured"]
LIMITS = "limits-2026-11-28.json"
QUANTISED_8B = "quantised-8b-cascade-lake-2026-11-28.json"
SERVING = "serving-demo-cascade-lake-2026-11-27.json"
RAY_BATCH, RAY_SERVE, RAY_DIALOGUES = (f"ray-{name}-2026-11-28.json" for name in ("batch", "serve", "dialogues"))


def of_full_8b(side: str, name: str) -> Source:
    """The median of the three turns."""
    return equals(median(FULL_8B[f"{side} {turn}"][name] for turn in (1, 2, 3)))


def quantised_8b_ratio(kind: str, path: str = "numba") -> Source:
    """Tokens a second against those in bfloat16: the median of the turns' ratios."""
    measured, rate = load(QUANTISED_8B)["measured"], "decode_tokens_per_s"
    turns = [[measured[f"{path} {name} {turn}"][rate] for name in (kind, "bf16")] for turn in (1, 2, 3)]
    return equals(median(ours / bf16 for ours, bf16 in turns))


def quantised_layers_ratio(kind: str, rows: str) -> Source:
    """The same for the layers alone, with so many sequences."""
    seconds = load(QUANTISED_8B)["seconds"][rows]
    return equals(median(bf16 / ours for ours, bf16 in zip(seconds[f"numba {kind}"], seconds["numba bf16"])))


def quantised_8b_peak(kind: str) -> Source:
    return equals(max(load(QUANTISED_8B)["measured"][f"numba {kind} {turn}"]["peak_gb"] for turn in (1, 2, 3)))


def full_8b_ratio(name: str) -> Source:
    """Ours against transformers: the median of the turns' ratios."""
    turns = [[FULL_8B[f"{side} {turn}"][name] for side in ("ours", "transformers")] for turn in (1, 2, 3)]
    return equals(median(ours / theirs for ours, theirs in turns))


def decoding(side: str, sequences: int) -> Source:
    return result(CPU, f"decode/{sequences}/{side}/ratio")


def over_llama_cpp(what: str, n: int) -> Source:
    """How many times as fast as llama.cpp numba is: the median of the turns' ratios."""
    sides = load(CPU)[what][str(n)]
    return equals(median(b / a for a, b in zip(sides["numba"]["seconds"], sides["llama.cpp bf16"]["seconds"])))


def over_in_prompt(side: str, other: str) -> Source:
    """The same for a prompt of 512 in the newer run."""
    sides = load("cpu-prompt-cascade-lake-2026-11-27.json")["prompt"]["512"]
    return equals(median(b / a for a, b in zip(sides[side]["seconds"], sides[other]["seconds"])))


OF_CUDA = load(PARITY)["cuda_over_transformers_bf16"].values()
REFERENCES, TOKENIZER = "tests/model/test_against_references.py", "tests/test_tokenizer.py"
STORIES, DEMO = "tests/model/test_stories260k.py", "tests/weights/test_demo.py"
KERNELS, SAMPLER = "tests/cuda/kernel_checks.py", "tests/cuda/test_sampler.py"
CONTRACT, NO_FAULT = "tests/test_workers_ai_input.py", "tests/oracle/test_no_fault.py"
BATCH = "tests/test_batch_file.py"
WEIGHTS = memory.weight_bytes(LLAMA3_8B)
CACHE = 2 * 4 * LLAMA3_8B.n_layers * LLAMA3_8B.n_kv_heads * LLAMA3_8B.head_dim * MAX_CONTEXT  # bytes, in float32
CONTEXT = equals(MAX_CONTEXT)
MEGABYTE, GIGABYTE = 1e6, 1e9


def demo_parameters() -> int:
    return load_folder(ROOT / "weights" / "demo").parameters


def fault_kinds() -> int:
    """The causes in the table of docs/faults.md, but `rounding`, which is no fault."""
    return len(re.findall(r"^\| `(?!rounding)\w+` \|", (ROOT / "docs" / "faults.md").read_text(), re.MULTILINE))


# (page, a text of it, the source of each number in this text)
FIGURES: list[tuple[str, str, list[Source]]] = [
    ("README.md", "32 layers around", [equals(LLAMA3_8B.n_layers)]),
    ("README.md", "3.7 million parameters", [equals(demo_parameters() / 1e6)]),
    ("README.md", "at most 120 lines", [in_file("tests/test_plain.py", "<= 120")]),
    ("README.md", "16 GB of disk and memory", [equals(WEIGHTS / GIGABYTE)]),
    ("README.md", "at most 8,192 tokens", [CONTEXT]),
    # ---- the real model
    ("docs/models.md", "3,672,320 parameters", [equals(demo_parameters())]),
    (
        "docs/models.md",
        "8 for Llama 3.1 and 32 for Llama 3.2",
        [
            in_file("tests/published.py", "rope_factor=8.0"),
            in_file("tests/published.py", "rope_factor=32.0"),
        ],
    ),
    ("docs/models.md", "in 7.3 MB", [equals((ROOT / "weights/demo/model.safetensors").stat().st_size / MEGABYTE)]),
    ("docs/models.md", "fetch them, 16 GB", [equals(WEIGHTS / GIGABYTE)]),
    ("docs/models.md", "runs with 8,192 tokens", [CONTEXT]),
    ("docs/models.md", "16 GB of memory for its weights and 2 GB for", [equals(WEIGHTS / 1e9), equals(CACHE / 1e9)]),
    (
        "docs/models.md",
        "15.2 GB for short prompts, 15.9 GB with a prompt of 512 tokens, 16.5 GB when a context of 2,048 is full, and "
        "18.3 GB when one of 8,192",
        [
            of_full_8b("ours", "peak_gb"),
            equals(FULL_8B["ours, prompt 512"]["peak_gb"]),
            in_file("benchmarks/full_8b.py", "PROMPTS = (512,"),
            equals(FULL_8B["ours, prompt 2047"]["peak_gb"]),
            equals(2047 + 1),
            equals(FULL_8B["ours, prompt 8191"]["peak_gb"]),
            CONTEXT,
        ],
    ),
    ("docs/models.md", "| decoding | 0.88 tokens", [of_full_8b("ours", "decode_tokens_per_s")]),
    (
        "docs/models.md",
        "a prompt of 16 tokens | 3.6 seconds",
        [in_file("benchmarks/full_8b.py", "SHORT = 16"), of_full_8b("ours", "first_token_s")],
    ),
    (
        "docs/models.md",
        "a prompt of 512 tokens | 73 seconds",
        [equals(512), equals(FULL_8B["ours, prompt 512"]["first_token_s"])],
    ),
    (
        "docs/models.md",
        "a prompt of 8,191 tokens | 20 minutes",
        [equals(8191), equals(FULL_8B["ours, prompt 8191"]["first_token_s"] / 60)],
    ),
    ("docs/models.md", "reads 15 GB of weights", [equals(weights_read(LLAMA3_8B) / GIGABYTE)]),
    # ---- a GPU
    ("docs/gpu.md", "`head_dim` of 64 or 128", [equals(memory.HEAD_DIMS[0]), equals(memory.HEAD_DIMS[1])]),
    ("docs/gpu.md", "multiples of 64", [equals(memory.MULTIPLE)]),
    ("docs/gpu.md", "more than 32 rows", [equals(linear.MAX_FEW)]),
    ("docs/gpu.md", "more than 64 rows", [equals(linear.MAX_GRAPH_ROWS)]),
    ("docs/gpu.md", "in groups of 128 columns", [equals(quantised.GROUP)]),
    ("docs/gpu.md", "For 64 sequences", [equals(linear.MAX_GRAPH_ROWS)]),
    (
        "docs/gpu.md",
        "(with codes more than 64; with memory of more than 4 TB/s, as an `H200` has, more than 16)",
        [equals(linear.MAX_GRAPH_ROWS), equals(linear.FAST_MEMORY / 1e12), equals(linear.MAX_FEW_FAST_MEMORY)],
    ),
    ("docs/gpu.md", "the products with up to 32 rows", [equals(linear.MAX_FEW)]),
    (
        "docs/gpu.md",
        "a full context of 8,192 tokens needs 18 GB",
        [CONTEXT, equals(memory.needed_bytes(LLAMA3_8B, 1, MAX_CONTEXT) / GIGABYTE)],
    ),
    # ---- evidence: right numbers
    ("docs/evidence.md", "transformers at 4,096 tokens", [in_file(NO_FAULT, "tokens_of(config, 4096)")]),
    ("docs/evidence.md", "(`--rope-angles float32`) | 1e-5", [equals(RTOL["float32"][0])]),
    ("docs/evidence.md", "each of the 14 kinds", [equals(fault_kinds())]),
    ("docs/evidence.md", "60 right implementations", [in_file(NO_FAULT, "range(60)")]),
    ("docs/evidence.md", "the logits of 20 random models", [equals(len(load(PARITY)["references"]))]),
    (
        "docs/evidence.md",
        "in float32 | 1e-5, measured 1.6e-6",
        [in_file(REFERENCES), result(PARITY, "references_worst")],
    ),
    ("docs/evidence.md", "the 200 greedy tokens", [in_file(STORIES, "== 200")]),
    ("docs/evidence.md", "equal | 1e-5, measured 2.2e-6", [in_file(STORIES), result(PARITY, "stories260k_worst")]),
    ("docs/evidence.md", "the demo over 200 tokens", [in_file(DEMO, "== 200")]),
    ("docs/evidence.md", "tokens | 1e-5, measured 2.9e-6", [in_file(DEMO, "rtol=1e-5"), result(PARITY, "demo_worst")]),
    (
        "docs/evidence.md",
        "up to 8,192 tokens, equal one full forward pass | 1e-5 |",
        [in_file("tests/model/test_transformer.py", "LONG = 8192"), in_file("tests/model/test_transformer.py", "1e-5")],
    ),
    ("docs/evidence.md", "over 512 tokens in float32", [result(FLOAT64, "tokens")]),
    (
        "docs/evidence.md",
        "error | 1e-11, measured 4.5e-12, with `numba` 3.8e-12",
        [in_file("benchmarks/float64.py"), result(FLOAT64, "numpy/nmse"), result(FLOAT64, "numba/nmse")],
    ),
    (
        "docs/evidence.md",
        "a quarter, measured 5.0e-4",
        [equals(max(model[attention]["rounded"] for model in ROUNDED for attention in ("eager", "sdpa")))],
    ),
    ("docs/evidence.md", "equals PEFT on transformers | 1e-5 |", [in_file("tests/oracle/test_lora.py", "<= 1e-5")]),
    # ---- evidence: text, tokens, sampling
    (
        "docs/evidence.md",
        "all 128,000 tokens and 10,000 texts",
        [in_file(TOKENIZER, "range(128_000)"), in_file(TOKENIZER, "range(10_000)")],
    ),
    ("docs/evidence.md", "1,000 dialogues give", [in_file("tests/test_chat.py", "dialogues(1_000")]),
    ("docs/evidence.md", "100,000 draws", [in_file("tests/test_sampler.py", "100_000")]),
    # ---- evidence: CUDA, emulated
    ("docs/evidence.md", "1e-5 in bf16, 1e-10 in float32", [in_file(KERNELS, "1e-5"), in_file(KERNELS, "1e-10")]),
    ("docs/evidence.md", "makes a difference | error 1e-2", [in_file("tests/cuda/test_transformer.py", "= 1e-2")]),
    ("docs/evidence.md", "emulated CUDA equal NumPy | error 1e-2", [in_file("tests/cuda/test_transformer.py", "1e-2")]),
    ("docs/evidence.md", "measured 0.72 to 0.74 times", [equals(min(OF_CUDA)), equals(max(OF_CUDA))]),
    (
        "docs/evidence.md",
        "9,800 draws from 4,096 tokens, 200 from 128,256",
        [
            in_file(SAMPLER, "4096, 9_800"),
            in_file(SAMPLER, "4096, 9_800"),
            in_file(SAMPLER, "128_256, 200"),
            in_file(SAMPLER, "128_256, 200"),
        ],
    ),
    # ---- evidence: contract and server
    ("docs/evidence.md", "20,000 inputs, right and wrong", [in_file(CONTRACT, "range(20_000)")]),
    ("docs/evidence.md", "20,000 inputs that are wrong", [in_file(CONTRACT, "found < 20_000")]),
    ("docs/evidence.md", "2,000 random schemas", [in_file("tests/test_tool_schemas.py", "2_000")]),
    ("docs/evidence.md", "20,000 random requests", [in_file("tests/server/test_app.py", "20_000")]),
    (
        "docs/evidence.md",
        "64 clients for a minute",
        [in_file("tests/server/test_many_clients.py", "CLIENTS, SECONDS = 64, 60")],
    ),
    ("docs/evidence.md", "killed 20 times", [in_file("tests/cli/test_batch.py", "range(20)")]),
    (
        "docs/evidence.md",
        "100,000 requests of a batch, against the first 1,000 | at most 5 MB",
        [in_file(BATCH, "100_000"), in_file(BATCH, "n == 1000"), in_file(BATCH, "<= 5 << 20")],
    ),
    # ---- evidence: speed and memory
    (
        "docs/evidence.md",
        "with 4 slots, against what the steps allow, on a model whose step sleeps for 10 ms | 0.97 times",
        [
            result("batch-2026-11-28.json", "slots"),
            result("batch-2026-11-28.json", "step_seconds", lambda seconds: 1e3 * seconds),
            result("batch-2026-11-28.json", "turns", lambda turns: median(turn["share_as_slept"] for turn in turns)),
        ],
    ),
    ("docs/evidence.md", "A ratio above 1", [equals(1)]),
    ("docs/evidence.md", "decoding 1, 4, 16 and 32 sequences", [equals(n) for n in ROWS]),
    ("docs/evidence.md", "1.26, 4.99, 3.49 and 2.76 times", [decoding("numba", n) for n in ROWS]),
    ("docs/evidence.md", "0.44, 1.76, 2.03 and 2.36 times", [decoding("numpy", n) for n in ROWS]),
    ("docs/evidence.md", "decoding 1 sequence with", [equals(1)]),
    ("docs/evidence.md", "as they can | 0.99 times", [over_llama_cpp("decode", 1)]),
    ("docs/evidence.md", "a prompt of 512 tokens with `numba`", [equals(512)]),
    ("docs/evidence.md", "bf16 | 1.24 times", [over_in_prompt("numba", "llama.cpp bf16")]),
    (
        "docs/evidence.md",
        "NumPy 0.80, `numba` 0.83 times",
        [over_in_prompt(side, "NumPy float32 products alone") for side in ("numpy", "numba")],
    ),
    ("docs/evidence.md", "in turns | 1.40 times", [full_8b_ratio("decode_tokens_per_s")]),
    (
        "docs/evidence.md",
        "the first token after 16, the same | 0.34 times",
        [in_file("benchmarks/full_8b.py", "SHORT = 16"), full_8b_ratio("first_token_s")],
    ),
    (
        "docs/evidence.md",
        "a context of 2,048 is full, and one of 8,192 | 16.5 GB and 18.3 GB",
        [
            equals(2047 + 1),
            CONTEXT,
            equals(FULL_8B["ours, prompt 2047"]["peak_gb"]),
            equals(FULL_8B["ours, prompt 8191"]["peak_gb"]),
        ],
    ),
    (
        "docs/evidence.md",
        "a prompt of 8,191 tokens | NumPy 1,139 s (beside work of idle priority), `numba` 1,185 s",
        [
            equals(8191),
            result("full-8b-numpy-cascade-lake-2026-11-27.json", "measured/ours, prompt 8191/first_token_s"),
            equals(FULL_8B["ours, prompt 8191"]["first_token_s"]),
        ],
    ),
    (
        "docs/evidence.md",
        "for 1 client, and for 16 with 8 slots | 201 and 342",
        [
            result(SERVING, "clients/0/clients"),
            result(SERVING, "clients/4/clients"),
            result(SERVING, "slots"),
            result(SERVING, "clients/0/tokens_per_s"),
            result(SERVING, "clients/4/tokens_per_s"),
        ],
    ),
    (
        "docs/evidence.md",
        "of 8 answers while a prompt of 1,024 is read, against before (p95, the demo) | 1.32 times",
        [
            result(SERVING, "slots"),
            in_file("benchmarks/serving.py", "LONG_PROMPT, STREAM_PROMPT, STREAM_TOKENS = 1024"),
            in_file("benchmarks/serving.py", "(50, 95, 99)"),
            result(SERVING, "long_prompt/p95_ratio"),
        ],
    ),
    (
        "docs/evidence.md",
        "with four layers of the 8B's shapes and `numba` | 2.67 times",
        [result("serving-8b-layers-cascade-lake-2026-11-28.json", "long_prompt/p95_ratio")],
    ),
    (
        "docs/evidence.md",
        "SciPy is not installed | 1.11 s and 0.38 s",
        [result(NUMBA, "first_use_of_numba/compiles"), result(NUMBA, "first_use_of_numba/from its cache")],
    ),
    (
        "docs/evidence.md",
        "where SciPy is installed | 1.37 s and 0.62 s",
        [result(NUMBA_SCIPY, "first_use_of_numba/compiles"), result(NUMBA_SCIPY, "first_use_of_numba/from its cache")],
    ),
    (
        "docs/evidence.md",
        "answers a click in Chromium | 231 ms",
        [result(INSPECT_PAGE, "interactive_ms/median")],
    ),
    (
        "docs/evidence.md",
        "that page of 213 tokens, and what else it requests | 658 KB, nothing",
        [result(INSPECT_PAGE, "tokens"), result(INSPECT_PAGE, "bytes", lambda n: n / 1e3)],
    ),
    (
        "docs/evidence.md",
        "over 1, 16 and 512 tokens with tracing in the code and off, against one without"
        " | 1.002, 1.000 and 1.001 times",
        [equals(n) for n in (1, 16, 512)] + [result(TRACE_OFF, f"demo_{n}/ratio") for n in (1, 16, 512)],
    ),
    # ---- evidence: Ray
    (
        "docs/evidence.md",
        "The models' steps sleep for 10 ms",
        [result(RAY_BATCH, "step_seconds", lambda seconds: 1e3 * seconds)],
    ),
    ("docs/evidence.md", "with two replicas, against one | 1.98 times", [result(RAY_BATCH, "gain")]),
    (
        "docs/evidence.md",
        "against one, for 16 clients | 1.99 times",
        [in_file("benchmarks/ray_serve.py", "= 4, 16, 0.01"), result(RAY_SERVE, "ratio")],
    ),
    (
        "docs/evidence.md",
        "this project's ingress | 0.44 ms and nothing",
        [result(RAY_SERVE, "request_ms_added_without_failover")],
    ),
    (
        "docs/evidence.md",
        "keeps dialogues together | 3.8 ms and 0.14 ms",
        [result(RAY_SERVE, f"{part}_ms_added_with_failover") for part in ("request", "token")],
    ),
    (
        "docs/evidence.md",
        "streams of 64 clients while a replica is killed, 20 times",
        [result(RAY_SERVE, "kill/clients"), result(RAY_SERVE, "kill/kills")],
    ),
    ("docs/evidence.md", "1,280 of 1,280", [result(RAY_SERVE, "kill/equal"), result(RAY_SERVE, "kill/streams")]),
    (
        "docs/evidence.md",
        "turns 2 to 10 of dialogues",
        [equals(2), result(RAY_DIALOGUES, "turns_of_a_dialogue")],
    ),
    (
        "docs/evidence.md",
        "for 8, 16 and 32 clients | 1.00, 1.00 and 0.99; by header 1.00, 0.98 and 0.99",
        [result(RAY_DIALOGUES, f"runs/{n}/clients") for n in (0, 2, 4)]
        + [result(RAY_DIALOGUES, f"runs/{n}/stayed") for n in (0, 2, 4, 1, 3, 5)],
    ),
    (
        "docs/evidence.md",
        "two layers of the 8B's shapes | 0.999, 0.998 and 0.995 times",
        [result(TRACE_OFF, f"8b_{n}/ratio") for n in (1, 16, 512)],
    ),
    (
        "docs/evidence.md",
        "from 128,256 logits | 0.7 ms; with `top_p` 1.5 ms",
        [result("sampler-2026-11-22.json", "vocab_size"), sampling({}), sampling({"top_p": 0.9})],
    ),
    (
        "docs/evidence.md",
        "0.23 s, of which importing NumPy takes 0.14 s",
        [result(STARTUP, "seconds/import llama3.Llama", median), result(STARTUP, "seconds/import numpy", median)],
    ),
    (
        "docs/evidence.md",
        "adapter of rank 16 on every matrix | 0.98 to 1.02 times",
        [result("lora-2026-11-26.json", "rank"), equals(min(LORA)), equals(max(LORA))],
    ),
    (
        "docs/evidence.md",
        "in 8 and 4 bits, against bfloat16, in turns, at a context of 2,048 | 1.72 and 2.24 times",
        [equals(8), equals(4), equals(16), equals(2048), quantised_8b_ratio("int8"), quantised_8b_ratio("int4")],
    ),
    (
        "docs/evidence.md",
        "converting takes the time ([`cpu.md`](cpu.md#weights-in-8-and-4-bits)) | 1.24 and 0.83",
        [quantised_8b_ratio(kind, "numpy") for kind in ("int8", "int4")],
    ),
    (
        "docs/evidence.md",
        "decoding 4 sequences with four layers of the 8B's shapes and `numba`, in the same way | 1.44 and 1.60 times",
        [equals(4), *(quantised_layers_ratio(kind, "4") for kind in ("int8", "int4"))],
    ),
    *[
        ("docs/evidence.md", text, [in_file(f"tests/oracle/test_{file}.py", literal) for literal in literals])
        for text, file, literals in (
            ("on the same entries | 1e-5 |", "quantised", ["1e-5"]),
            ("with compressed-tensors: the same logits | 1e-5 |", "quantize", ["<= 1e-5"]),
            ("the likeliest | 1e-3, at least 0.99 of them", "quantize", ["<= 1e-3", ">= 0.99"]),
            ("the demo in 8 bits, on held-out questions", "quantize", ['tmp_path / "new", 8']),
        )
    ],
    ("docs/evidence.md", "## Weights in 8 and 4 bits", [equals(8), equals(4)]),
    ("docs/evidence.md", "the rounding of NF4", [equals(4)]),
    (
        "docs/evidence.md",
        "in 8 and 4 bits when a context of 2,048 is full | 8.78 GB and 5.40 GB",
        [
            *(equals(8), equals(4), equals(2048)),
            quantised_8b_peak("int8"),
            quantised_8b_peak("int4"),
        ],
    ),
    (
        "docs/evidence.md",
        "the same while one prompt fills it | 9.43 GB and 6.19 GB",
        [result(QUANTISED_8B, f"measured/numba {kind}, prompt/peak_gb") for kind in ("int8", "int4")],
    ),
    ("docs/evidence.md", "first answer | 0.3 s", [result(SERVER, "seconds_to_health")]),
    ("docs/evidence.md", "adds to a token | 0.19 ms", [result(SERVER, "cost_ms_a_token")]),
    ("docs/evidence.md", "ten minutes of 64 clients", [result(SERVER, "clients")]),
    ("docs/evidence.md", "answers | 159,641, and no error but 429", [result(SERVER, "replies/200"), equals(429)]),
    (
        "docs/evidence.md",
        "128.5 MB after the second minute, 128.4 MB after the tenth",
        [
            result(SERVER, "every_15_s/7/resident_bytes", lambda n: n / MEGABYTE),
            result(SERVER, "every_15_s/39/resident_bytes", lambda n: n / MEGABYTE),
        ],
    ),
    # ---- parity, inspect
    *[
        ("docs/parity.md", text, [result(LIMITS, f"worst_rows/{dtype}/{name}") for name in names])
        for text, dtype, names in (
            ("at most 4.5e-6 and 7.1e-6", "float32", ("logits", "activations")),
            ("at most 17.0 and 34.4", "float16", ("logits_roundoffs", "activations_roundoffs")),
            ("at most 17.8 and 36.1", "bfloat16", ("logits_roundoffs", "activations_roundoffs")),
        )
    ],
    ("docs/parity.md", "in 400 random models", [result(LIMITS, "models")]),
    ("docs/parity.md", "528 bytes a position", [equals(compact.TOP * (4 + 4) + 8 + 8)]),  # ids, logits, log_sum, token
    (
        "docs/parity.md",
        "is 0.5 times as far from transformers with it as float64 is (NMSE; the demo, 200 tokens, "
        '"eager"), and 2.4 times',
        [
            result(ROUNDING, "models/demo, random tokens/eager/transformers_without_onednn"),
            result(ROUNDING, "models/demo, random tokens/tokens"),
            result(ROUNDING, "models/SmolLM2-135M/eager/transformers_without_onednn"),
        ],
    ),
    (
        "docs/inspect.md",
        "at most 1 GB: 4,096 tokens of the demo, 512 of an 8B",
        [
            equals(inspect_run.MEMORY / 2**30),
            equals((inspect_run.MEMORY / 4 / DEMO_CONFIG.n_layers / DEMO_CONFIG.n_heads) ** 0.5),
            equals((inspect_run.MEMORY / 4 / LLAMA3_8B.n_layers / LLAMA3_8B.n_heads) ** 0.5),
        ],
    ),
    (
        "docs/inspect.md",
        "at most 256 tokens of prompt and 200 of answer",
        [equals(inspect_api.MAX_PROMPT), equals(inspect_api.MAX_TOKENS)],
    ),
    # ---- using
    ("docs/using.md", "| `max_tokens` | 256 |", [equals(MAX_TOKENS)]),
    ("docs/using.md", "52 of 60 requests", [in_file("weights/training/README.md", "52 of 60")] * 2),
    (
        "docs/using.md",
        "of 146 KB",
        [equals((ROOT / "weights/rhyme/adapter_model.safetensors").stat().st_size / 1000)],
    ),
]
STRICT = ("README.md", "docs/evidence.md", "docs/gpu.md", "docs/models.md")  # every number needs a source


def text_of(page: str) -> str:
    return " ".join(prose(ROOT / page).split())


@pytest.mark.parametrize(("page", "text", "sources"), FIGURES, ids=[f"{page}: {text}" for page, text, _ in FIGURES])
def test_a_figure_is_that_of_its_source(page: str, text: str, sources: list[Source]):
    assert text in text_of(page)
    numbers = NUMBER.findall(NAMES.sub("", text))
    assert len(numbers) == len(sources), numbers
    for number, source in zip(numbers, sources):
        assert source(number), f"{number} is not what its source says"


@pytest.mark.parametrize("page", STRICT)
def test_no_number_is_without_a_source(page: str):
    text = text_of(page)
    covered = [
        match.span() for where, part, _ in FIGURES if where == page for match in re.finditer(re.escape(part), text)
    ]
    text = NAMES.sub(lambda match: "-" * len(match[0]), text)
    for start, end in covered:
        text = text[:start] + "-" * (end - start) + text[end:]
    left = [text[max(match.start() - 30, 0) : match.end() + 10] for match in NUMBER.finditer(text)]
    assert not left, f"add to FIGURES: {left}"


def test_every_result_file_that_a_page_names_has_a_machine():
    for name in {
        Path(link).name for page in STRICT for link in re.findall(r"results/([\w.-]+\.json)", prose(ROOT / page))
    }:
        assert load(name)["machine"]["processor"], name
