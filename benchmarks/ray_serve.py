"""What Ray Serve costs and gives: two replicas beside one, and beside the plain server; and what kills do to streams.

    unshare --net sh -c 'ip link set lo up; exec python benchmarks/ray_serve.py [--turns 5] [--out FILE.json]'

Throughput: 16 clients stream from models of 4 slots whose step sleeps 10 ms. Latency: one client, steps that take no
time. There each of these takes its turn: the plain server; the same application on Ray Serve alone ("direct": a stream
ends with its replica); and llama3's own, whose streams go on. Kills: clients stream from two replicas of the demo while
one is killed; each text is compared with that of an undisturbed run.

Ray Serve runs in its mode with HAProxy; --python-proxy chooses the other one. Without a network of its own (`unshare`,
as root), Ray listens on all of this machine's interfaces. A turn takes about 100 s, a kill about 15.
"""

import argparse
import asyncio
import json
import logging
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from machine import about_this_run  # the file beside this one

ROOT = Path(__file__).parents[1]
RUN = "/client/v4/accounts/me/ai/run/@hf/meta-llama/meta-llama-3-8b-instruct"
SLOTS, CLIENTS, SECONDS, TOKEN = 4, 16, 0.01, "benchmark"
STREAMS, TOKENS = 6, 50  # of each client
REQUESTS, LONG_STREAMS, LONG_TOKENS = 200, 5, 400
PLAIN = """if True:
    import sys
    from sleeping_model import sleeping_llama
    from llama3.server.main import Settings, serve
    seconds, port = float(sys.argv[1]), int(sys.argv[2])
    serve(lambda: sleeping_llama(4, seconds)[0], Settings("127.0.0.1", port, "benchmark", 4, 32, quiet=True))
"""


@dataclass
class Stream:
    """When a stream's events arrived, in seconds since its request, and their texts."""

    arrived: list[float]
    texts: list[str]
    whole: bool


async def ask(port: int, inputs: dict[str, Any]) -> Stream:
    """One request, on a connection of its own."""
    body = json.dumps(inputs).encode()
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {RUN} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    found = Stream([], [], False)
    assert (await reader.readline()).split()[1] == b"200"
    while line := await reader.readline():
        if line.startswith(b"data: [DONE]"):
            found.whole = True
        elif line.startswith(b"data: "):
            found.arrived.append(time.perf_counter() - start)
            event = json.loads(line[6:])
            found.texts.append(event["response"])
            assert "errors" not in event, event
    writer.close()
    if not inputs.get("stream"):
        found.arrived, found.whole = [time.perf_counter() - start], True
    return found


async def throughput(port: int) -> float:
    """Tokens a second for all clients together."""

    async def client(number: int) -> None:
        for n in range(STREAMS):
            await ask(port, {"prompt": f"{number} {n}", "max_tokens": TOKENS, "seed": 1, "stream": True})

    start = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return CLIENTS * STREAMS * TOKENS / (time.perf_counter() - start)


async def latency(port: int) -> dict[str, float]:
    """The median milliseconds of a request for one token, and from token to token of a stream."""
    requests = [(await ask(port, {"prompt": "hi", "max_tokens": 1, "seed": 1})).arrived[0] for _ in range(REQUESTS)]
    streams = []
    for _ in range(LONG_STREAMS):
        stream = await ask(port, {"prompt": "hi", "max_tokens": LONG_TOKENS, "seed": 1, "stream": True})
        streams.append((stream.arrived[-1] - stream.arrived[0]) / (len(stream.arrived) - 1))
    return {"request_ms": 1e3 * statistics.median(requests), "token_ms": 1e3 * statistics.median(streams)}


def load(settings: Any, seconds: float) -> Any:
    """Called in the replicas."""
    from sleeping_model import sleeping_llama

    return sleeping_llama(settings.slots, seconds)[0]


def direct(settings: Any, seconds: float) -> Any:
    """The plain server's application on Ray Serve, without an ingress: no failover, no affinity."""
    from ray import serve

    def make() -> Any:
        from llama3.server.app import make_app
        from llama3.server.service import Service

        service = Service(lambda: load(settings, seconds), SLOTS, settings.queue)
        service.llama = service.load()
        return make_app(service, TOKEN)

    class Direct:
        pass

    options = {"ray_actor_options": {"num_cpus": 0.5}, "max_ongoing_requests": SLOTS + settings.queue}
    return serve.deployment(serve.ingress(make)(Direct), name="Direct", **options).bind()


def deploy(name: str, seconds: float, replicas: int, port: int) -> None:
    """Put an application in place of the one before."""
    from ray import serve

    from llama3.ray.serve import build
    from llama3.ray.settings import Settings

    settings = Settings(device="cpu", replicas=replicas, slots=SLOTS, token=TOKEN, quiet=True)
    if name == "demo":
        application = build(settings)
    elif name == "direct":
        application = direct(settings, seconds)
    else:
        application = build(settings, partial(load, seconds=seconds))
    for old in list(serve.status().applications):
        serve.delete(old)
    serve.run(application, name=name)
    wait(port)


def wait(port: int) -> None:
    for _ in range(600):
        try:
            asyncio.run(ask(port, {"prompt": "hi", "max_tokens": 1}))
            return
        except (OSError, AssertionError, IndexError):
            time.sleep(0.1)
    raise SystemExit("no answer within a minute")


def plain(seconds: float) -> tuple[subprocess.Popen[bytes], int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", PLAIN, str(seconds), str(port)])
    wait(port)
    return process, port


def turn(port: int) -> dict[str, Any]:
    """Each configuration once. The load average says how quiet the machine was."""
    found: dict[str, Any] = {"load_average": os.getloadavg()[0]}
    for name, seconds in (("plain_tokens_a_second", SECONDS), ("plain", 0.0)):
        process, own = plain(seconds)
        found[name] = asyncio.run(throughput(own) if seconds else latency(own))
        process.terminate()
        process.wait()
    for replicas in (1, 2):
        deploy("llama3", SECONDS, replicas, port)
        found[f"tokens_a_second_{replicas}"] = asyncio.run(throughput(port))
    for name in ("direct", "llama3"):
        deploy(name, 0.0, 1, port)
        found[name] = asyncio.run(latency(port))
    found["ratio"] = found["tokens_a_second_2"] / found["tokens_a_second_1"]
    return found


def replica_processes() -> list[int]:
    """The process ids of the replicas: those in this program's network."""
    mine, found = os.readlink("/proc/self/ns/net"), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "cmdline").read_text()
            if os.readlink(process / "ns/net") == mine and name.startswith("ray::ServeReplica:demo:Replica"):
                found.append(int(process.name))
        except OSError:
            pass  # it has ended
    return found


async def kill_round(port: int, clients: int, dice: random.Random | None) -> list[Stream]:
    """Each client streams once; dice: after a random time, kill a replica."""
    inputs = {"max_tokens": 60, "temperature": 5, "stream": True}
    running = [
        asyncio.ensure_future(ask(port, {**inputs, "prompt": f"Go on, {n}", "seed": n + 1})) for n in range(clients)
    ]
    if dice is not None:
        await asyncio.sleep(dice.uniform(0.3, 2))
        os.kill(dice.choice(replica_processes()), signal.SIGKILL)
    return await asyncio.gather(*running)


def kills(port: int, times: int, clients: int) -> dict[str, Any]:
    deploy("demo", 0.0, 2, port)
    undisturbed = [stream.texts for stream in asyncio.run(kill_round(port, clients, None))]
    dice, equal, gaps = random.Random(1), 0, []
    for _ in range(times):
        while len(replica_processes()) < 2:
            time.sleep(0.2)
        time.sleep(3)  # the new one loads its model
        for stream, texts in zip(asyncio.run(kill_round(port, clients, dice)), undisturbed):
            equal += stream.whole and stream.texts == texts
            gaps.append(max(b - a for a, b in zip(stream.arrived, stream.arrived[1:])))
    return {"kills": times, "clients": clients, "streams": times * clients, "equal": equal, "longest_gap_s": max(gaps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--clients", type=int, default=64, help="while replicas are killed")
    parser.add_argument("--python-proxy", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = f"{ROOT}:{ROOT / 'benchmarks'}"
    if not args.python_proxy:  # read when Ray's processes start
        os.environ |= {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
        os.environ["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] = "1"  # between two deployments; by default 30
    from llama3.ray.cluster import cluster, import_ray

    port = 8123
    with cluster("local"):
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(http_options={"port": port}, logging_config={"log_level": "ERROR"})
        result: dict[str, Any] = {**about_this_run(), "ray": import_ray().__version__}
        result |= {"proxy": "python" if args.python_proxy else "haproxy", "turns": []}
        for _ in range(args.turns):
            result["turns"].append(turn(port))
            print(json.dumps(result["turns"][-1]), flush=True)
        if args.turns:
            result |= medians(result["turns"])
        if args.kills:
            result["kill"] = kills(port, args.kills, args.clients)
    print(json.dumps({name: value for name, value in result.items() if name != "turns"}, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def medians(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Of all turns; what is added is the difference within a turn."""
    found = {
        name: statistics.median(turn[name] for turn in turns)
        for name in ("ratio", "plain_tokens_a_second", "tokens_a_second_1", "tokens_a_second_2")
    }
    for part in ("request_ms", "token_ms"):
        for name in ("direct", "llama3"):
            added = statistics.median(turn[name][part] - turn["plain"][part] for turn in turns)
            found[f"{part}_added_{'with' if name == 'llama3' else 'without'}_failover"] = added
    return found


if __name__ == "__main__":
    main()
