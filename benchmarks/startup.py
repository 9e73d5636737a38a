"""How long until something happens: `import llama3`, beside NumPy's own import, and the demo's first token.

    python benchmarks/startup.py

Each figure is the median of 15 fresh processes, interleaved, so that a noisy machine treats all of them alike.
"""

import statistics
import subprocess
import sys

PROGRAMS = {
    "import numpy": "import numpy",
    "import llama3": "import llama3",
    "first token of the demo": "from llama3 import Llama; next(Llama.load().stream('The'))",
}
TIMED = "import time; start = time.perf_counter()\n{}\nprint(time.perf_counter() - start)"


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(15):
        for name, program in PROGRAMS.items():
            ran = subprocess.run([sys.executable, "-c", TIMED.format(program)], capture_output=True, check=True)
            seconds[name].append(float(ran.stdout))
    for name, times in seconds.items():
        print(f"{name:<26}{statistics.median(times):8.3f} s   ({min(times):.3f} to {max(times):.3f})")


if __name__ == "__main__":
    main()
