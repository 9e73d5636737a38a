"""Speed and waiting times of many requests at once, on the CPU.

    python benchmarks/serving.py [--out FILE.json] [--plot FILE.svg]         the demo model, about three minutes
    python benchmarks/serving.py --layers 4 --linear numpy [...]             four layers of the 8B's shapes, 5 GB
                                 [--clients 1 4 16] [--requests 6]           and for them fewer clients and requests

The clients are threads that share a `Llama`, as the threads of the server do; what HTTP adds to a token is measured by
`server.py`. Four parts:
- clients: 1 to 64 of them, each of which sends its next request when its last one has been answered;
- arrivals: requests that come at random moments, a Poisson process, whether or not the earlier ones are answered;
- a long prompt: how long 8 running answers wait for a token while a prompt of 1,024 tokens is read beside them;
- a dialogue: how much of each turn's prompt is read, and how much is taken from the cache.

Times are what a client sees: to the first token from the moment at which the request was due, and between two tokens of
an answer. `--plot` needs matplotlib.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import random_8b  # the files beside this one
from machine import about_this_run
from serving_plot import draw, matplotlib_or_exit

sys.path.insert(0, str(Path(__file__).parents[1]))
from llama3 import Llama
from llama3.checkpoint import Checkpoint, load_folder, resolve
from llama3.engine import Engine, Request

SLOTS = 8
CLIENTS = (1, 2, 4, 8, 16, 32, 64)
LOADS = (0.25, 0.5, 0.75, 0.9)  # arrivals, as a part of the most requests a second that the clients got answered
PROMPTS, ANSWERS = (32, 128), (8, 24)  # tokens, from and to
LONG_PROMPT, STREAM_PROMPT, STREAM_TOKENS = 1024, 128, 24
DIALOGUE, TURNS, NEW, OTHER = 2000, 4, 60, 100  # tokens before the second turn; turns; tokens of a turn, of the other
CONTEXT = 4096
BAR = 2  # times as long between two tokens while a long prompt is read


@dataclass
class Times:
    """One request, as its client sees it."""

    due: float
    tokens: list[float] = field(default_factory=list)  # when each token came

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.tokens, self.tokens[1:])]


class CountingEngine(Engine):
    """Records how many tokens of each prompt were in the cache."""

    def __init__(self, llama: Llama, slots: int):
        super().__init__(llama.model, slots)
        self.cached: list[int] = []

    def _take_slot(self, request: Request) -> int | None:
        slot = super()._take_slot(request)
        if slot is not None:
            self.cached.append(self.cache.lengths[slot])
        return slot


def load(layers: int | None) -> Llama:
    """The demo, or random weights in the 8B's shapes. No token ends an answer early, and the context is long."""
    if layers is None:
        checkpoint = load_folder(resolve(None))
    else:
        config = replace(random_8b.CONFIG, n_layers=layers)
        weights = random_8b.random_weights(config)
        checkpoint = Checkpoint(Path("random"), config, weights, None, frozenset(), "Meta", (), {})
    return Llama(replace(checkpoint, config=replace(checkpoint.config, max_seq_len=CONTEXT), stop_ids=frozenset()))


def with_slots(llama: Llama, slots: int) -> CountingEngine:
    """Give the model a new engine, whose cache is empty: loading it again would copy or convert its weights again."""
    engine = CountingEngine(llama, slots)
    llama._engine = engine
    return engine


def ask(llama: Llama, prompt: list[int], tokens: int, due: float | None = None) -> Times:
    times = Times(time.perf_counter() if due is None else due)
    for _ in llama.stream(prompt, max_tokens=tokens, temperature=0):
        times.tokens.append(time.perf_counter())
    return times


def random_tokens(llama: Llama, dice: random.Random, n: int) -> list[int]:
    return [dice.randrange(llama.config.vocab_size) for _ in range(n)]


def random_requests(llama: Llama, n: int, seed: int) -> list[tuple[list[int], int]]:
    """n times (prompt, max_tokens)."""
    dice = random.Random(seed)
    return [(random_tokens(llama, dice, dice.randint(*PROMPTS)), dice.randint(*ANSWERS)) for _ in range(n)]


def run_threads(functions: Iterable[Callable[[], object]]) -> None:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds."""
    return {f"p{p}": round(1e3 * float(np.percentile(seconds, p)), 3) for p in (50, 95, 99)}


def summary(answered: list[Times], start: float) -> dict[str, Any]:
    took = max(times.tokens[-1] for times in answered) - start
    return {
        "requests": len(answered),
        "requests_per_s": len(answered) / took,
        "tokens_per_s": sum(len(times.tokens) for times in answered) / took,
        "first_token_ms": percentiles([times.tokens[0] - times.due for times in answered]),
        "between_tokens_ms": percentiles([gap for times in answered for gap in times.gaps]),
    }


def closed_loop(llama: Llama, clients: int, least: int) -> dict[str, Any]:
    """Each client sends its next request when its last one has been answered."""
    with_slots(llama, SLOTS)
    requests, answered = random_requests(llama, max(2 * clients, least), seed=clients), list[Times]()

    def client() -> None:
        while True:
            try:
                prompt, tokens = requests.pop()
            except IndexError:
                return
            answered.append(ask(llama, prompt, tokens))

    start = time.perf_counter()
    run_threads([client] * clients)
    return {"clients": clients, **summary(answered, start)}


def poisson(llama: Llama, per_second: float, n: int) -> dict[str, Any]:
    """Requests arrive independently of each other, and of the answers."""
    with_slots(llama, SLOTS)
    dice, answered = random.Random(1), list[Times]()
    start = due = time.perf_counter()

    def client(prompt: list[int], tokens: int, due: float) -> None:
        time.sleep(max(0, due - time.perf_counter()))
        answered.append(ask(llama, prompt, tokens, due))

    clients = []
    for prompt, tokens in random_requests(llama, n, seed=1):
        due += dice.expovariate(per_second)
        clients.append(lambda request=(prompt, tokens, due): client(*request))
    run_threads(clients)
    return {"arrivals_per_s": per_second, **summary(answered, start)}


def long_prompt(llama: Llama) -> dict[str, Any]:
    """A prompt of 1,024 tokens among 8 running answers: the times between their tokens before, meanwhile and after."""
    with_slots(llama, SLOTS + 1)
    dice, running, end = random.Random(2), [Times(0) for _ in range(SLOTS)], threading.Event()

    def stream(times: Times, prompt: list[int]) -> None:
        answer = llama.stream(prompt, max_tokens=CONTEXT - len(prompt), temperature=0)
        for _ in answer:
            times.tokens.append(time.perf_counter())
            if end.is_set():
                answer.close()

    def wait(tokens: int) -> None:
        """Until each answer has so many more tokens."""
        goals = [len(times.tokens) + tokens for times in running]
        while any(len(times.tokens) < goal for times, goal in zip(running, goals)):
            time.sleep(0.001)

    def client() -> None:
        nonlocal begin, sent, first
        wait(1)
        begin = time.perf_counter()
        wait(STREAM_TOKENS)
        long = ask(llama, random_tokens(llama, dice, LONG_PROMPT), 1)
        sent, first = long.due, long.tokens[0]
        wait(STREAM_TOKENS)
        end.set()

    begin = sent = first = 0.0
    prompts = [random_tokens(llama, dice, STREAM_PROMPT) for _ in running]
    run_threads([client, *(lambda pair=pair: stream(*pair) for pair in zip(running, prompts))])
    steps = [[(now, gap) for now, gap in zip(times.tokens[1:], times.gaps) if now - gap > begin] for times in running]
    pooled = list(itertools.chain(*steps))
    phases = {
        "before": [gap for now, gap in pooled if now <= sent],
        "while": [gap for now, gap in pooled if now - gap < first and now > sent],
        "after": [gap for now, gap in pooled if now - gap >= first],
    }
    found: dict[str, Any] = {f"{name}_ms": percentiles(gaps) for name, gaps in phases.items()}
    return {
        "rows_beside_answers": llama.model.mixed_prefill_chunk,
        **found,
        "p95_ratio": found["while_ms"]["p95"] / found["before_ms"]["p95"],
        "bar": BAR,
        "prompt_took_s": first - sent,
        "sent_s": sent - begin,
        "one_answer_s_ms": [(round(now - begin, 4), round(1e3 * gap, 2)) for now, gap in steps[0]],
    }


def dialogue(llama: Llama, slots: int) -> dict[str, Any]:
    """Turns of one dialogue, with a request of somebody else between any two: what is read of each turn's prompt."""
    engine, dice, turns = with_slots(llama, slots), random.Random(3), []
    prompt = random_tokens(llama, dice, DIALOGUE)
    for turn in range(TURNS):
        stream = llama.stream(prompt, max_tokens=ANSWERS[1], temperature=0)
        due, first = time.perf_counter(), next(stream)
        took = time.perf_counter() - due
        answer = [first.token, *(piece.token for piece in stream)]
        read = len(prompt) - engine.cached[-1]
        new = len(prompt) if turn == 0 else NEW + 1  # the last token of an answer is read with the next turn
        turns.append({"prompt": len(prompt), "new": new, "read": read, "first_token_ms": round(1e3 * took, 3)})
        ask(llama, random_tokens(llama, dice, OTHER), ANSWERS[1])
        prompt = [*prompt, *answer, *random_tokens(llama, dice, NEW)]
    return {"slots": slots, "only_new_tokens_read": all(turn["read"] == turn["new"] for turn in turns), "turns": turns}


def measure(layers: int | None, counts: Sequence[int], least: int) -> dict[str, Any]:
    """All four parts, in this process."""
    llama = load(layers)
    closed_loop(llama, SLOTS, SLOTS)  # a warm-up
    clients = []
    for n in counts:
        clients.append(closed_loop(llama, n, least))
        show(f"{n} clients", clients[-1])
    best, arrivals = max(level["requests_per_s"] for level in clients), []
    for part in LOADS:
        arrivals.append({"load": part, **poisson(llama, part * best, 4 * least)})
        show(f"{part * best:.2f} arrivals a second", arrivals[-1])
    return {
        "linear": llama.model.linear.kind,
        "slots": SLOTS,
        "clients": clients,
        "arrivals": arrivals,
        "long_prompt": long_prompt(llama),
        "dialogues": [dialogue(llama, slots) for slots in (1, 2)],
    }


def show(name: str, level: dict[str, Any]) -> None:
    first, between = level["first_token_ms"], level["between_tokens_ms"]
    print(
        f"{name:26} {level['tokens_per_s']:8.1f} tokens/s   first token {first['p50']:9.1f} ms, p95 {first['p95']:9.1f}"
        f"   between tokens {between['p50']:7.1f} ms, p95 {between['p95']:7.1f}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, help="so many layers of the 8B's shapes instead of the demo")
    parser.add_argument("--linear", choices=("numpy", "numba", "amx"), help="what multiplies by the weights")
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS, help="how many at once, by default 1 to 64")
    parser.add_argument("--requests", type=int, default=16, help="at least so many for each number of clients")
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    parser.add_argument("--plot", type=Path, help="draw them: FILE.svg or FILE.png")
    arguments = parser.parse_args()
    if arguments.plot:
        matplotlib_or_exit()
    if arguments.linear:
        os.environ["LLAMA3_LINEAR"] = arguments.linear  # the new process inherits it
    model = f"{arguments.layers} layers of the 8B's shapes" if arguments.layers else "demo"
    about = {**about_this_run(), "load_average_before": os.getloadavg()[0], "model": model}
    with multiprocessing.get_context("spawn").Pool(1) as other:
        result = {**about, **other.apply(measure, (arguments.layers, arguments.clients, arguments.requests))}

    long = result["long_prompt"]
    for name in ("before", "while", "after"):
        times = long[f"{name}_ms"]
        print(f"{name} a prompt of {LONG_PROMPT} is read: between tokens {times['p50']} ms, p95 {times['p95']} ms")
    print(f"p95 while it is read: {long['p95_ratio']:.2f} times that before (bar: at most {BAR})")
    for found in result["dialogues"]:
        read = ", ".join(f"{turn['read']} of {turn['prompt']}" for turn in found["turns"])
        print(f"a dialogue, slots={found['slots']}: tokens read in each turn: {read}")
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.plot:
        draw(result, arguments.plot)
    return 0 if long["p95_ratio"] <= BAR and result["dialogues"][-1]["only_new_tokens_read"] else 1


if __name__ == "__main__":
    sys.exit(main())
