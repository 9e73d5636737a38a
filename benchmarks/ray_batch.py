"""How much faster two replicas answer a batch than one, on models whose steps sleep: what is lost is Ray's and ours.

    unshare --net sh -c 'ip link set lo up; exec python benchmarks/ray_batch.py [--turns 5] [--out FILE.json]'

400 requests with answers of 10 to 90 tokens run through `in_order` and `Replicas`, as `llama3 batch --ray` runs them,
on a cluster of this machine. Each replica has 4 slots, and its step takes 10 ms. One and two replicas take turns; their
start is not in the time, but is given as well. Without a network of its own (`unshare`, as root), Ray listens on all of
this machine's interfaces.
"""

import argparse
import json
import statistics
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from batch import REQUESTS, SECONDS, SLOTS, requests  # the file beside this one
from machine import about_this_run
from sleeping_model import sleeping_llama

from llama3 import Llama
from llama3.batch import in_order
from llama3.json_text import encode_json
from llama3.ray.cluster import cluster, import_ray
from llama3.ray.dispatch import Replicas
from llama3.ray.placement import Placement


def load(device: str, slots: int) -> Llama:
    return sleeping_llama(slots, SECONDS)[0]


def turn(replicas: int) -> dict[str, float]:
    """One turn: the seconds until all replicas are ready, and the tokens a second from then on."""
    begin = time.perf_counter()
    with closing(Replicas(load, Placement(replicas, "cpu", 0, 0.5), SLOTS)) as copies:
        with copies.changed:
            copies.changed.wait_for(lambda: all(handle.ready for handle in copies.handles))
        start = time.perf_counter()
        lines = [encode_json(request) for request in requests(REQUESTS)]
        answers = list(in_order(lines, copies.answer_line, copies.slots, copies.close))
        seconds = time.perf_counter() - start
    assert not any(answer.error for answer in answers)
    tokens = sum(answer.tokens for answer in answers)
    ideal = replicas * SLOTS / SECONDS
    return {
        "replicas": replicas,
        "start_seconds": start - begin,
        "seconds": seconds,
        "tokens": tokens,
        "tokens_a_second": tokens / seconds,
        "share": tokens / seconds / ideal,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    begin, pairs = time.perf_counter(), []
    with cluster("local"):
        connected = time.perf_counter() - begin
        for _ in range(args.turns):
            pairs.append((turn(1), turn(2)))
            one, two = pairs[-1]
            print(
                f"{one['tokens_a_second']:.1f} and {two['tokens_a_second']:.1f} tokens/s: "
                f"{two['tokens_a_second'] / one['tokens_a_second']:.3f} x; {two['share']:.4f} of slots x rate"
            )
    gain = statistics.median(two["tokens_a_second"] / one["tokens_a_second"] for one, two in pairs)
    result: dict[str, Any] = {"slots": SLOTS, "step_seconds": SECONDS, "requests": REQUESTS, "gain": gain}
    result |= {"ray": import_ray().__version__, "cluster_start_seconds": connected, "turns": pairs}
    print(f"median {gain:.3f} x; the cluster started in {connected:.1f} s")
    if args.out:
        args.out.write_text(json.dumps(about_this_run() | result, indent=1) + "\n")


if __name__ == "__main__":
    main()
