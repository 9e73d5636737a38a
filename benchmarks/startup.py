"""Times the start: `import numpy` for comparison, `import llama3`, the demo's first token, and the first use of numba.

    python benchmarks/startup.py [--out FILE.json]

Each figure is the median of 15 new processes. The programs alternate, so that other load on the machine affects all of
them alike. If numba is installed, the demo's first token is also timed with compiled kernels, which the demo would not
choose by itself: without a cache on disk, as after an installation, and with the cache of an earlier process. What
these take longer than NumPy is the price of the first use, with numba's own import. numba imports SciPy if there is
one, so run this with and without it; the versions of both are in the result.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from machine import about_this_run  # the file beside this one

from llama3.model.compiled import linear_amx

RUNS = 15
TOKEN = "from llama3 import Llama; next(Llama.load(linear={!r}).stream('The'))"
NUMPY = "first token of the demo"
COMPILES, CACHED = f"{NUMPY}, numba compiles", f"{NUMPY}, numba from its cache"
PROGRAMS = {
    "import numpy": "import numpy",
    "import llama3.Llama": "from llama3 import Llama",
    NUMPY: TOKEN.format("numpy"),
}
TIMED = """
import time; start = time.perf_counter(), time.process_time()
{}
print(time.perf_counter() - start[0], time.process_time() - start[1])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds, cpu_seconds = measure(Path(folder))
    for name, times in seconds.items():
        print(f"{name:<46}{statistics.median(times):8.3f} s   ({min(times):.3f} to {max(times):.3f})")
    versions = {name: installed(name) for name in ("numba", "llvmlite", "scipy")}
    results = {"versions": versions, "seconds": seconds, "cpu_seconds": cpu_seconds}
    if COMPILES in seconds:
        results |= {"linear": kind(), "first_use_of_numba": first_use(seconds, cpu_seconds)}
        print(f"first use of numba, linear={kind()}, SciPy {versions['scipy'] or 'not installed'}:")
        for name, value in first_use(seconds, cpu_seconds).items():
            print(f"  {name:<40}{value:8.3f} s")
    if args.out:
        args.out.write_text(json.dumps(about_this_run() | results, indent=1) + "\n")


def measure(folder: Path) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of each program in RUNS processes, and seconds of CPU time. The folder is for numba's caches."""
    programs = dict(PROGRAMS)
    if find_spec("numba"):
        programs |= dict.fromkeys((COMPILES, CACHED), TOKEN.format(kind()))
        run(programs[CACHED], folder / "kept")  # fills the cache
    seconds, cpu_seconds = ({name: [] for name in programs} for _ in range(2))
    for turn in range(RUNS):
        for name, program in programs.items():
            wall, cpu = run(program, folder / (f"turn {turn}" if name == COMPILES else "kept"))
            seconds[name].append(wall)
            cpu_seconds[name].append(cpu)
    return seconds, cpu_seconds


def first_use(seconds: dict[str, list[float]], cpu_seconds: dict[str, list[float]]) -> dict[str, float]:
    """What the first token takes longer than with NumPy: medians of the turns' differences."""
    return {
        f"{how}{unit}": statistics.median(a - b for a, b in zip(times[name], times[NUMPY]))
        for how, name in (("compiles", COMPILES), ("from its cache", CACHED))
        for unit, times in (("", seconds), (", CPU time", cpu_seconds))
    }


def kind() -> str:
    """The kind of compiled kernels for this CPU."""
    return "numba" if linear_amx.missing() else "amx"


def run(program: str, cache: Path) -> tuple[float, float]:
    command = [sys.executable, "-c", TIMED.format(program)]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    wall, cpu = subprocess.run(command, env=environment, capture_output=True, check=True).stdout.split()
    return float(wall), float(cpu)


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
