"""Runs all of the GPU benchmark without a GPU, and prints the lines of benchmarks/gpu*.py that did not run, as JSON.

    python -m tests.oracle.gpu_benchmark_lines FOLDER

A process of its own, so that the lines that run at import count, too. First the dry run of every part, then what only
happens when something is wrong: no GPU, a report of another card, no time left, a row or the GPU that fails. The model
has the 8B's shapes, and two layers.
"""

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import CodeType
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "benchmarks").glob("gpu*.py"))
ran: dict[str, set[int]] = {str(path): set() for path in FILES}


def lines(path: Path) -> set[int]:
    """The numbers of the lines that Python can run, but for the last ones, of a script."""
    text = path.read_text(encoding="utf-8")
    end = text[: text.find('\nif __name__ == "__main__"')].count("\n") + 2 if "\nif __name__" in text else 10**9

    def codes(code: CodeType) -> Iterator[CodeType]:
        yield code
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                yield from codes(constant)

    found = {line for code in codes(compile(text, str(path), "exec")) for _, _, line in code.co_lines() if line}
    return {line for line in found if line < end}


def trace(frame: Any, event: str, arg: Any) -> Callable[..., Any] | None:
    seen = ran.get(frame.f_code.co_filename)
    if seen is None:
        return None

    def local(frame: Any, event: str, arg: Any) -> Any:
        seen.add(frame.f_lineno)
        return local

    return local(frame, event, arg)


def run_all(folder: Path) -> None:
    import gpu
    import gpu_assumptions
    import gpu_attention_counts
    import gpu_card
    import gpu_decoders
    import gpu_fast
    import gpu_host
    import gpu_launches
    import gpu_logits
    import gpu_model
    import gpu_predictions
    import gpu_start
    import gpu_timing
    import gpu_torch

    from tests.cuda.stand_ins import a_gpu

    report = folder / "gpu.json"
    with patch("gpu.LLAMA3_8B", replace(gpu.LLAMA3_8B, n_layers=2)):
        assert gpu.main(["--dry-run", "--out", str(report)]) == 0, report.read_text()
    assert gpu_logits.main(["--tiny", "--out", str(folder / "logits.json")]) == 0
    with patch("gpu_predictions.PAGE", folder / "page.md"):
        gpu_predictions.main(["--write"])
        gpu_predictions.main([])
    launched = gpu_launches.Launched("cuBLAS", 0, (((64, 64), 8192), ((64, 64), 8192)))  # where 64 rows are ours
    assert gpu_model.blocks_per_sm(launched) == 1 and gpu_model.l2_bytes(launched) == 3 * 8192
    assert round(gpu_model.python_seconds(gpu_assumptions.AFTER, 65), 9) == 1e-4

    for script in (gpu_attention_counts, gpu_host):  # they need no GPU
        with patch("sys.argv", ["script", *(["--quick", "--out", str(folder / "host.json")] * (script is gpu_host))]):
            script.main()

    # no GPU
    assert gpu.main([]) == gpu_logits.main([]) == 1
    # a report of another card; a file that is none
    report.write_text(report.read_text().replace("stand-in for an H100", "H200"))
    assert gpu.main(["--dry-run", "--out", str(report)]) == 1
    report.write_text("{}")
    assert gpu.main(["--dry-run", "--out", str(report)]) == 1

    shorter = patch.multiple(gpu_timing, RUNS=1, WARM=1, WARM_STEPS=1, STEPS=2, GRAPHS=2)
    with shorter, a_gpu() as card:
        # as on a GPU, with no time left: one row of the part runs
        with patch("gpu_parts.random_model", broken):
            assert gpu.main(["--minutes", "0", "--parts", "products"]) == gpu.LEFT
        with patch("gpu.LLAMA3_8B", gpu.TINY):
            # every limit and every row fails, and then the GPU itself
            sitting = gpu.Sitting(None, ["products"], 9, card.torch_device)
            with patch("gpu_torch.matmul_rate", broken), patch("gpu_torch.product", broken):
                assert sitting.run() == 5
            with patch("gpu_card.torch.cuda.synchronize", broken):
                assert gpu.Sitting(None, ["products"], 9, card.torch_device).run() == 10
        # baselines that torch.compile ran without CUDA graphs
        skipped = {"cudagraph_skips": 1, "cudagraphs": 0}
        with patch("gpu_decoders.graph_counts", lambda: skipped):
            model = gpu_fast.random_model(gpu.TINY, card.torch_device)
            assert "NOT in CUDA graphs" in gpu_decoders.decode("fast_compile", model, gpu.TINY, 1, 20)["note"]
    with a_gpu(), patch("subprocess.run", broken):
        assert "it is broken" in gpu_card.clocks()["not_read"]
    with contextlib.suppress(gpu_torch.torch.OutOfMemoryError):
        gpu_torch.on_backend("flash", full)
    failed = subprocess.CompletedProcess([], 1, "", "a fault\n")
    with patch("subprocess.run", lambda *_, **__: failed), contextlib.suppress(RuntimeError):
        gpu_start.start_process(folder)


def full(repeat: bool) -> Any:
    import torch

    raise torch.OutOfMemoryError("it is full")


def broken(*_: Any, **__: Any) -> Any:
    raise subprocess.SubprocessError("it is broken")


def main() -> None:
    sys.settrace(trace)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            run_all(Path(sys.argv[1]))
        except BaseException:
            print(printed.getvalue()[-3000:], file=sys.stderr)
            raise
        finally:
            sys.settrace(None)
    missing = {path.name: sorted(lines(path) - ran[str(path)]) for path in FILES}
    print(json.dumps({name: numbers for name, numbers in missing.items() if numbers}))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "benchmarks"))
    main()
