"""Measure the page of `llama3 inspect --html` in Chromium: its size, the time until it answers, and its requests.

python benchmarks/inspect_page.py [--out FILE.json]    needs the extra `clients` and Chromium; about 200 tokens
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from machine import about_this_run
from playwright.sync_api import sync_playwright

from llama3 import Llama
from llama3.inspect import inspect
from llama3.inspect.page import page

TURNS = 9
QUESTION = "What is RoPE? " * 34  # with the answer, which has at most 64 tokens, more than 200 in all
# From the start of the navigation until a click has been answered and laid out.
CLICK = "() => { choose(150); document.body.offsetHeight; return performance.now(); }"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    out = parser.parse_args().out
    start = time.perf_counter()
    seen = inspect(Llama.load(), [{"role": "user", "content": QUESTION}], each=True, seed=1, temperature=1.2)
    seconds = time.perf_counter() - start
    html = page(seen)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "page.html")
        path.write_text(html, encoding="utf-8")
        ready, requests = in_chromium(path)
    result = {
        **about_this_run(),
        "tokens": len(seen.tokens),
        "inspect_seconds": round(seconds, 2),
        "bytes": len(html.encode()),
        "interactive_ms": {"median": round(statistics.median(ready)), "worst": round(max(ready)), "turns": TURNS},
        "requests_besides_the_page": requests,
    }
    print(json.dumps(result, indent=1))
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def in_chromium(path: Path) -> tuple[list[float], int]:
    """-> the milliseconds until the page has answered a click, in each turn, and how many other things it requested."""
    ready, requests = [], 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for _ in range(TURNS):
            tab = browser.new_page()
            asked: list[str] = []
            tab.on("request", lambda request, asked=asked: asked.append(request.url))
            tab.goto(path.as_uri())
            ready.append(tab.evaluate(CLICK))
            requests += sum(not url.startswith("data:") for url in asked) - 1
            tab.close()
        browser.close()
    return ready, requests


if __name__ == "__main__":
    main()
