"""Measure what the server costs: start-up time, time per token, and memory under load.

    python benchmarks/server.py [--minutes 10] [--out FILE.json]      (needs the extra "server")

All on the demo model: the time from the start of the process to the first 200 from /health; the milliseconds per token
that the server adds to `Llama.run`, measured in turn; then the memory, every 15 seconds, while 64 clients send requests
at once and half of them disconnect in the middle of the stream.
"""

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from machine import about_this_run  # the file beside this one

sys.path.insert(0, str(Path(__file__).parents[1]))
from llama3 import Llama

RUN = "/client/v4/accounts/me/ai/run/@hf/meta-llama/meta-llama-3-8b-instruct"
TOKENS, PAIRS, CLIENTS = 400, 9, 64
INPUTS = {"prompt": "Go on and on", "temperature": 3, "seed": 5}


class Server:
    """A `llama3 serve` process on a free port, ready when the constructor returns."""

    def __init__(self, *options: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        start = time.perf_counter()
        command = [sys.executable, "-m", "llama3.cli", "serve", "--quiet", "--port", str(self.port), *options]
        self.process = subprocess.Popen(command, cwd=Path(__file__).parents[1])
        while True:
            try:
                if self.request("GET", "/health", b"").startswith(b"HTTP/1.1 200"):
                    break
            except OSError:
                pass
            time.sleep(0.01)
        self.seconds_to_health = time.perf_counter() - start

    def send(self, method: str, path: str, body: bytes) -> socket.socket:
        """Send a request -> the connection on which the response arrives."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=120)
        headers = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection.sendall(headers.encode() + body)
        return connection

    def request(self, method: str, path: str, body: bytes) -> bytes:
        """Send a request -> the whole response."""
        found = b""
        with self.send(method, path, body) as connection:
            while part := connection.recv(65536):
                found += part
        return found

    def status(self) -> dict[str, int]:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return {"resident_bytes": 1024 * int(fields["VmRSS"].split()[0]), "threads": int(fields["Threads"])}


def time_per_token() -> dict[str, float]:
    """Stream the same answer in turn from `Llama.run` and from the server; the first pair is a warm-up."""
    llama, server = Llama.load(), Server("--slots", "1")
    inputs = {**INPUTS, "max_tokens": TOKENS, "stream": True}
    body = json.dumps(inputs).encode()
    bare, served = [], []
    for pair in range(PAIRS + 1):
        start = time.perf_counter()
        n = sum(1 for _ in llama.run(inputs))
        middle = time.perf_counter()
        reply = server.request("POST", RUN, body)
        end = time.perf_counter()
        assert reply.count(b"data: ") == n + 1, (reply.count(b"data: "), n)
        if pair:
            bare.append(1e3 * (middle - start) / TOKENS)
            served.append(1e3 * (end - middle) / TOKENS)
    server.process.terminate()
    server.process.wait()
    return {
        "bare_ms_a_token": statistics.median(bare),
        "served_ms_a_token": statistics.median(served),
        "cost_ms_a_token": statistics.median(b - a for a, b in zip(bare, served)),
    }


def run_clients(minutes: float) -> dict[str, Any]:
    """Memory, threads and response statuses of a server that CLIENTS clients use at the same time."""
    server, statuses, stop = Server("--slots", "8", "--queue", "40"), Counter[str](), threading.Event()

    def client(number: int) -> None:
        dice = random.Random(number)
        while not stop.is_set():
            body = json.dumps(
                {**INPUTS, "seed": dice.randint(1, 9999), "max_tokens": dice.randint(5, 60), "stream": True}
            )
            try:
                with server.send("POST", RUN, body.encode()) as connection:
                    found = connection.recv(200)
                    statuses[found[9:12].decode()] += 1
                    if number % 2:
                        continue  # disconnects
                    while part := connection.recv(65536):
                        found += part
                    if found.startswith(b"HTTP/1.1 200") and b"[DONE]" not in found:
                        statuses["unfinished"] += 1
            except OSError as error:
                statuses[type(error).__name__] += 1
            if found[9:12] == b"429":
                time.sleep(0.1)

    idle = server.status()
    threads = [threading.Thread(target=client, args=(n,)) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    samples = []
    for _ in range(max(1, round(4 * minutes))):
        time.sleep(15)
        samples.append(server.status())
    stop.set()
    for thread in threads:
        thread.join()
    time.sleep(1)
    after = server.request("GET", "/metrics", b"").decode()
    in_flight = next(line for line in after.splitlines() if line.startswith("llama3_requests_in_flight "))
    result = {
        "idle": idle,
        "every_15_s": samples,
        "replies": dict(statuses),
        "left_in_flight": float(in_flight.split()[1]),
    }
    server.process.terminate()
    server.process.wait()
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    health = []
    for _ in range(5):
        server = Server()
        health.append(server.seconds_to_health)
        server.process.terminate()
        server.process.wait()
    result: dict[str, Any] = {**about_this_run(), "load_average_before": os.getloadavg()[0]}
    result |= {"seconds_to_health": statistics.median(health), "seconds_to_health_all": health, **time_per_token()}
    print(json.dumps(result, indent=1), flush=True)
    result |= {"clients": CLIENTS, "minutes": args.minutes, **run_clients(args.minutes)}
    print(result["replies"], result["left_in_flight"], *(at["resident_bytes"] >> 20 for at in result["every_15_s"]))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
