"""workerd, a Worker's own runtime, with its AI binding answered here: the config that ships, the page's own Workers."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")  # the extra `server`

from llama3 import Llama
from tests.server.test_serve import ROOT, Running, read_all

WORKERD = os.environ.get("LLAMA3_WORKERD") or shutil.which("workerd")
CONFIG = Path(ROOT) / "docs" / "worker" / "config.capnp"
ASK = {"messages": [{"role": "user", "content": "What is RoPE?"}], "temperature": 0}

pytestmark = pytest.mark.skipif(WORKERD is None, reason="no workerd here; npm install workerd, and name it in PATH")


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    with Running("--token", "TOKEN") as running:
        yield running


class Worker:
    def __init__(self, folder: Path, code: str, server: Running):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        config = CONFIG.read_text().replace(":8000", f":{server.port}").replace(":8787", f":{self.port}")
        (folder / "config.capnp").write_text(config)
        (folder / "worker.js").write_text(code)
        assert WORKERD is not None
        self.process = subprocess.Popen([WORKERD, "serve", "--experimental", str(folder / "config.capnp")])
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
                return
            except OSError:
                assert self.process.poll() is None, "workerd has ended"
                time.sleep(0.1)
        raise AssertionError("workerd does not listen")

    def get(self, path: str) -> str:
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            return read_all(connection).decode().partition("\r\n\r\n")[2]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def events(text: str) -> list[dict]:
    found = re.findall(r"^data: (.*)$", text, re.M)
    assert found[-1] == "[DONE]"
    return [json.loads(event) for event in found[:-1]]


def test_the_worker_that_ships_gets_answers_streams_and_errors(served: Running, tmp_path: Path):
    worker = Worker(tmp_path, CONFIG.with_name("worker.js").read_text(), served)
    try:
        expected = Llama.load().run(ASK)
        assert json.loads(worker.get("/")) == expected
        streamed = events(worker.get("/stream?q=What%20is%20RoPE%3F"))
        assert "".join(chunk["response"] for chunk in streamed) and streamed[-1]["usage"]["completion_tokens"] > 5
        assert json.loads(worker.get("/?t=9"))["error"].endswith("5006: Error: '/temperature' must be <= 5")
    finally:
        worker.close()


def test_the_pages_own_workers_run_as_they_are(served: Running, tmp_path: Path):
    page = next(Path(ROOT).parent.glob("*/contract/model-page.txt"), None)
    if page is None:
        pytest.skip("the page's own examples are not here; contract/ beside this checkout would hold them")
    workers = re.findall(r"export default \{.*?\} satisfies ExportedHandler<Env>;", page.read_text(), re.S)
    assert len(workers) == 2
    for i, code in enumerate(workers):
        # TypeScript's types are for its compiler, which a Worker's build has taken out before it gets here.
        code = code.replace(" satisfies ExportedHandler<Env>", "").replace("): Promise<Response>", ")")
        folder = tmp_path / str(i)
        folder.mkdir()
        worker = Worker(folder, code, served)
        try:
            found = worker.get("/")
            if "data: " in found:
                assert "".join(chunk["response"] for chunk in events(found))
            else:
                assert "response" in found and json.loads(found)
        finally:
            worker.close()
