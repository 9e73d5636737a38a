"""Is this checkout as fast as another one? Both are measured in turn, in one run.

    git worktree add ../before COMMIT
    python benchmarks/before_after.py ../before [--triples 15] [--out FILE.json]      (needs the extra "server")

Four figures: the start (import and the demo's first token), the sampler (128,256 logits, top_p), a decoding step of
four layers of the 8B's shapes, and what the server adds to a token. Each turn measures the other checkout twice and
this one once, in changing order. The ratio of the two measurements of the same code is the noise of this machine.
"""

import argparse
import atexit
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]
LAYERS, DECODE_TOKENS, SAMPLES, SERVED_TOKENS = 4, 2, 40, 400
START = "import time; a = time.perf_counter(); from llama3 import Llama; next(Llama.load().stream('The'));"
FIGURES = ("start", "sampler", "decoding", "server")


# ---- a worker: a process that has imported one of the two checkouts and measures on request


def start() -> float:
    """Seconds to import llama3 and draw the demo's first token, in a fresh process."""
    program = START + "print(time.perf_counter() - a)"
    return float(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout)


def sampler() -> Callable[[], float]:
    """-> seconds a token."""
    import numpy as np

    from llama3 import SamplingParams, sampler

    vocab_size = 128_256
    logits = np.random.default_rng(0).standard_normal(vocab_size).astype(np.float32) * 3
    make = getattr(sampler, "SequenceSampler", None) or sampler.Sampling  # its name before the rewrite
    draw = make(SamplingParams(temperature=0.6, top_p=0.9, seed=1), [1, 2, 3], vocab_size)

    def measure() -> float:
        begin = time.perf_counter()
        for _ in range(SAMPLES):
            draw.accept(draw.sample(logits).token)
        return (time.perf_counter() - begin) / SAMPLES

    return measure


def decoding() -> Callable[[], float]:
    """-> seconds a token: LAYERS layers of the 8B's shapes and its output matrix, with random bits as weights."""
    import ml_dtypes
    import numpy as np

    from llama3.config import ModelConfig
    from llama3.model import transformer
    from llama3.model.batch import Batch

    try:
        from llama3.model.weights import LayerWeights, Weights
    except ImportError:  # their module before the rewrite
        LayerWeights, Weights = transformer.LayerWeights, transformer.Weights

    c = ModelConfig(4096, LAYERS, 32, 8, 128, 14336, 128_256)
    rng = np.random.default_rng(0)

    def matrix(out: int, width: int) -> np.ndarray:
        bits = rng.integers(0, 2**9, (out, width), np.uint16)
        return ((bits >> 8 << 15) | 0x3C00 | (bits & 0xFF)).view(ml_dtypes.bfloat16)  # from 2^-7 to 2^-5, both signs

    ones, q, kv = np.ones(c.dim, ml_dtypes.bfloat16), c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    shapes = ((q, c.dim), (kv, c.dim), (kv, c.dim), (c.dim, q))
    ffn = ((c.hidden_dim, c.dim), (c.dim, c.hidden_dim), (c.hidden_dim, c.dim))
    layer = LayerWeights(ones, *(matrix(*s) for s in shapes), ones, *(matrix(*s) for s in ffn))
    # One layer's arrays four times: 436 MB do not fit a cache either, and three processes fit into memory.
    output = matrix(c.vocab_size, c.dim)
    model = transformer.Transformer(c, Weights(output, [layer] * LAYERS, ones, output))
    cache = model.new_cache(1, 128)
    cache.allocate()
    model.forward(Batch.of([(0, list(range(64)))]), cache, np.arange(0))

    def measure() -> float:
        begin = time.perf_counter()
        for token in range(DECODE_TOKENS):
            model.forward(Batch.of([(0, [token])]), cache, np.array([0]))
        cache.truncate(0, 64)
        return (time.perf_counter() - begin) / DECODE_TOKENS

    return measure


def server() -> Callable[[], float]:
    """-> seconds that the server adds to a token of the demo, over the engine alone."""
    from llama3 import Llama

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llama3.cli", "serve", "--quiet", "--port", str(port), "--slots", "1"]
    process = subprocess.Popen(command)
    atexit.register(process.terminate)
    llama, inputs = Llama.load(), {"prompt": "Go on and on", "temperature": 3, "seed": 5, "max_tokens": SERVED_TOKENS}
    body = json.dumps(inputs | {"stream": True}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/run", b'{"inputs": %s}' % body)

    def ask(url: str | urllib.request.Request) -> bytes:
        with urllib.request.urlopen(url) as response:
            return bytes(response.read())

    while True:
        try:
            ask(f"http://127.0.0.1:{port}/health")
            break
        except OSError:
            time.sleep(0.05)

    def measure() -> float:
        begin = time.perf_counter()
        pieces = sum(1 for _ in llama.run(inputs | {"stream": True}))
        middle = time.perf_counter()
        events = ask(request).count(b"data: ")
        assert events == pieces + 1, (events, pieces)
        return (time.perf_counter() - middle - (middle - begin)) / SERVED_TOKENS

    return measure


def work(checkout: Path, figure: str) -> None:
    import llama3

    assert llama3.__file__ == str(checkout / "llama3" / "__init__.py"), llama3.__file__
    measure = start if figure == "start" else globals()[figure]()
    measure()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(measure(), flush=True)


# ---- the comparison


class Worker:
    def __init__(self, checkout: Path, figure: str):
        command = [sys.executable, str(Path(__file__).resolve()), str(checkout), "--work", figure]
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        if figure == "server":  # the server's event loop and the client get the second core, or noise hides the figure
            environment |= {"OPENBLAS_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=checkout, env=environment, stdin=pipe, stdout=pipe, text=True)
        assert self.process.stdout is not None and self.process.stdout.readline() == "ready\n"

    def measure(self) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(before: Path, figure: str, triples: int) -> dict[str, Any]:
    names = ("before", "before again", "after")
    workers = {name: Worker(HERE if name == "after" else before, figure) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    orders = itertools.cycle(itertools.permutations(names))
    for _ in range(triples):
        for name in next(orders):
            seconds[name].append(workers[name].measure())
    for worker in workers.values():
        worker.close()
    reference = seconds["before"]
    ratios = {name: [x / y for x, y in zip(seconds[name], reference)] for name in names[1:]}
    return {"seconds": seconds, "ratio": {name: statistics.median(r) for name, r in ratios.items()}, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("before", type=Path, help="the checkout to compare this one with")
    parser.add_argument("--triples", type=int, default=15)
    parser.add_argument("--figures", nargs="*", choices=FIGURES, default=FIGURES)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", choices=FIGURES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work(args.before, args.work)
    from machine import about_this_run  # the file beside this one

    before = args.before.resolve()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=before, capture_output=True, text=True, check=True)
    found = {"before": commit.stdout.strip(), **about_this_run()}
    for figure in args.figures:
        found[figure] = compare(before, figure, args.triples)
        ratio, median = found[figure]["ratio"], statistics.median(found[figure]["seconds"]["before"])
        print(
            f"{figure:<10} before {1e3 * median:8.3f} ms; after {ratio['after']:.3f} x; "
            f"the same code again {ratio['before again']:.3f} x",
            flush=True,
        )
        if args.out:
            args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
