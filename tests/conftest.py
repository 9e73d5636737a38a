"""Decides which tests are collected and which may be skipped, and provides files that are not in the repository."""

import importlib.util
import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # as many of these run as there are cores
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch

settings.register_profile("llama3", settings(), deadline=None)  # machines that run tests are shared and noisy
settings.load_profile("llama3")

# Comparisons with transformers need the extra `oracle`, tests with NVRTC and NVIDIA's bindings need `gates`, tests with
# clients of the server need `clients`, tests of compiled products `numba`, and tests on a cluster `ray`. Without these
# large extras, such tests are not collected.
collect_ignore = [] if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers") else ["oracle"]
collect_ignore += (
    []
    if importlib.util.find_spec("cupy") and importlib.util.find_spec("nvidia")
    else [
        f"cuda/test_{name}.py"
        for name in ("attention_counts", "compile_gates", "cubin", "dependent_launch", "machine_gates")
    ]
)
collect_ignore += (
    [] if importlib.util.find_spec("openai") and importlib.util.find_spec("cloudflare") else ["server/clients"]
)

if not importlib.util.find_spec("numba"):
    collect_ignore += [
        "test_same_bits.py",
        "model/compiled/test_linear_numba.py",
        "model/compiled/test_linear_amx.py",
        "model/compiled/test_linear_amx_quantised.py",
        "model/compiled/test_linear_quantised.py",
        "model/compiled/test_attention_numba.py",
    ]

if not importlib.util.find_spec("ray"):
    collect_ignore += ["ray/test_batch.py", "ray/test_connection.py", "ray/test_deployment.py", "ray/test_serve.py"]

# A run in continuous integration fails if a test is skipped for any other reason.
MAY_SKIP = (
    "stories260K",
    "GPU",
    "numba is not installed",
    "the extra `plot` is not installed",
    "AMX",
    "AVX-512",
    "network namespace",
    "AutoAWQ is not installed",  # these three are in no extra: tests/oracle/test_gptq_awq.py says why
    "AutoGPTQ is not installed",
    "GPTQModel is not installed",
    "the page's own schemas",
    "the page's own examples",
)


def pytest_configure() -> None:
    """Let the programs that tests start hear Ctrl-C, even if this process ignores it.

    `nohup` and a shell's background jobs ignore it, and what they start would too. A handler is not passed on.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)


@pytest.fixture(scope="session")
def stories260k() -> Path:
    """Real trained weights (karpathy/tinyllamas) with reference ids and logits; not in this repository."""
    beside = Path(__file__).parents[2].glob("*/models/stories260K")  # in any folder beside this checkout
    folder = Path(os.environ.get("LLAMA3_STORIES260K") or next(beside, "stories260K"))
    if not folder.is_dir():
        pytest.skip("the stories260K weights are not here; LLAMA3_STORIES260K names their folder")
    return folder


@pytest.fixture(scope="session")
def page_schemas() -> tuple[str, str]:
    """The JSON Schemas of input and output on Cloudflare's page of the model; not in this repository."""
    folder = next(Path(__file__).parents[2].glob("*/contract"), Path("contract"))
    files = [folder / f"{name}.schema.json" for name in ("input", "output")]
    if not all(file.is_file() for file in files):
        pytest.skip("the page's own schemas are not here; contract/ beside this checkout would hold them")
    return files[0].read_text(), files[1].read_text()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Fail a run that skipped or left out tests which it should have run.

    In continuous integration, any skip whose reason is not in MAY_SKIP fails the run. If LLAMA3_GPU_TESTS is set, a run
    without a test on a GPU fails.
    """
    stats = terminalreporter.stats
    on_gpu = [
        r for kind in ("passed", "failed") for r in stats.get(kind, []) if "gpu" in r.keywords and r.when == "call"
    ]
    without = [report for report in stats.get("skipped", []) if "gpu" in getattr(report, "keywords", ())]
    if without:
        terminalreporter.write_line(f"{len(without)} tests wanted a GPU and found none")
    if os.environ.get("LLAMA3_GPU_TESTS") and not on_gpu:
        terminalreporter.write_line("LLAMA3_GPU_TESTS is set, and no test ran on a GPU")
        terminalreporter._session.exitstatus = pytest.ExitCode.TESTS_FAILED  # type: ignore[attr-defined]
    reasons = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    wrong = [reason for reason in reasons if not any(word in reason for word in MAY_SKIP)]
    if wrong and os.environ.get("CI"):
        terminalreporter.section("skips that fail this run")
        for reason in wrong:
            terminalreporter.write_line(reason)
        terminalreporter._session.exitstatus = pytest.ExitCode.TESTS_FAILED  # type: ignore[attr-defined]
