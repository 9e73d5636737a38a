"""How much of a model's rate `llama3 batch` reaches, on a model whose step sleeps: what is lost is the host's.

    python benchmarks/batch.py [--turns 5] [--out FILE.json]

400 requests with answers of 10 to 90 tokens run through `in_order` and `Answerer`, as the command runs them. A step
takes 10 ms and gives each of 4 slots a token, so the rate that can be reached is slots / seconds of a step. The share
of it is given for the 10 ms that were asked for, and for the time that the steps slept, which depends on the system.
Then 100,000 lines are answered by a stand-in that answers at once: time, and how much memory the process has gained
since the first 1,000.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import about_this_run  # the file beside this one
from sleeping_model import sleeping_llama

from llama3.batch import in_order
from llama3.batch_file import AnswerFile, read_lines
from llama3.batch_request import Answerer, Line
from llama3.json_text import encode_json

SLOTS, SECONDS, REQUESTS, LINES = 4, 0.01, 400, 100_000


def requests(n: int) -> list[dict[str, Any]]:
    dice = random.Random(0)
    return [
        {"custom_id": str(k), "prompt": f"Question {dice.random()}", "max_tokens": dice.randint(10, 90)}
        for k in range(n)
    ]


def share_of_rate() -> dict[str, float]:
    """One turn: the tokens a second, and their share of what the model can give."""
    llama, model = sleeping_llama(SLOTS, SECONDS)
    answerer = Answerer(llama)
    start, cpu = time.perf_counter(), time.process_time()
    answers = list(in_order(requests(REQUESTS), answerer.answer, SLOTS, answerer.close))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    assert all(answer["success"] for answer in answers)
    return {
        "tokens": model.tokens,
        "seconds": seconds,
        "tokens_a_second": model.tokens / seconds,
        "share": model.tokens / seconds * SECONDS / SLOTS,
        "share_as_slept": model.tokens / seconds * model.slept / model.steps / SLOTS,
        "share_of_slots_in_steps": model.tokens / model.steps / SLOTS,
        "cpu_ms_a_token": 1e3 * cpu / model.tokens,
    }


def memory() -> dict[str, float]:
    """LINES lines through the files, answered at once: the bytes gained after the first 1,000 answers."""

    def answer(text: bytes) -> Line:
        request = json.loads(text)
        return Line(encode_json({"custom_id": request["custom_id"], "result": {"response": request["prompt"]}}), 1)

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "requests.jsonl"
        with source.open("w") as file:
            for k in range(LINES):
                print(json.dumps({"custom_id": str(k), "prompt": "x" * 200}), file=file)
        with source.open("rb") as file:
            lines = read_lines(file)
            answers = AnswerFile(str(Path(folder) / "answers.jsonl"), lines)
            start, before = time.perf_counter(), 0
            for n, _ in enumerate(answers.append(in_order(lines, answer, SLOTS), 16), 1):
                if n == 1000:
                    before = resident_bytes()
            result = {"lines": n, "seconds": time.perf_counter() - start, "bytes_gained": resident_bytes() - before}
            answers.close()
    return result


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    turns = [share_of_rate() for _ in range(args.turns)]
    for turn in turns:
        shares = f"{turn['share']:.4f} of slots x rate, {turn['share_as_slept']:.4f} as slept"
        print(f"{turn['tokens_a_second']:.1f} tokens/s, {shares}")
    share = statistics.median(turn["share"] for turn in turns)
    result = {"slots": SLOTS, "step_seconds": SECONDS, "requests": REQUESTS, "share": share, "turns": turns}
    result["memory"] = memory()
    print(f"median {share:.4f}; {result['memory']}")
    if args.out:
        args.out.write_text(json.dumps(about_this_run() | result, indent=1) + "\n")


if __name__ == "__main__":
    main()
