"""Times the start: `import numpy` for comparison, `import llama3`, and the demo's first token.

    python benchmarks/startup.py [--out FILE.json]

Each figure is the median of 15 new processes. The programs alternate, so that other load on the machine affects all of
them alike.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from machine import about_this_run  # the file beside this one

PROGRAMS = {
    "import numpy": "import numpy",
    "import llama3.Llama": "from llama3 import Llama",
    "first token of the demo": "from llama3 import Llama; next(Llama.load().stream('The'))",
}
TIMED = "import time; start = time.perf_counter()\n{}\nprint(time.perf_counter() - start)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(15):
        for name, program in PROGRAMS.items():
            ran = subprocess.run([sys.executable, "-c", TIMED.format(program)], capture_output=True, check=True)
            seconds[name].append(float(ran.stdout))
    for name, times in seconds.items():
        print(f"{name:<26}{statistics.median(times):8.3f} s   ({min(times):.3f} to {max(times):.3f})")
    if args.out:
        args.out.write_text(json.dumps(about_this_run() | {"seconds": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
