"""Workers in workerd, their runtime, whose AI binding calls the server: the shipped one, and the model page's."""

import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

pytest.importorskip("uvicorn")  # the extra `server`

from llama3 import Llama
from tests.server.node import MODULES, needs_node
from tests.server.running import ROOT, RunningServer

WORKERD = MODULES / ".bin" / "workerd"
CONFIG = Path(ROOT) / "docs" / "worker" / "config.capnp"
ASK = {"messages": [{"role": "user", "content": "What is RoPE?"}], "temperature": 0}

pytestmark = needs_node


@pytest.fixture(scope="module")
def server_with_token() -> Iterator[RunningServer]:
    with RunningServer("--token", "TOKEN") as running:
        yield running


class Worker:
    def __init__(self, folder: Path, code: str, server: RunningServer):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        config = CONFIG.read_text().replace(":8000", f":{server.port}").replace(":8787", f":{self.port}")
        (folder / "config.capnp").write_text(config)
        (folder / "worker.js").write_text(code)
        self.process = subprocess.Popen([WORKERD, "serve", "--experimental", str(folder / "config.capnp")])
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
                return
            except OSError:
                assert self.process.poll() is None, "workerd has exited"
                time.sleep(0.1)
        raise AssertionError("workerd did not start to listen within 20 seconds")

    def get(self, path: str) -> str:
        return httpx2.get(f"http://127.0.0.1:{self.port}{path}", timeout=60, trust_env=False).text

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def events(text: str) -> list[dict]:
    found = re.findall(r"^data: (.*)$", text, re.M)
    assert found[-1] == "[DONE]"
    return [json.loads(event) for event in found[:-1]]


def test_the_shipped_worker_gets_answers_streams_and_errors(server_with_token: RunningServer, tmp_path: Path):
    worker = Worker(tmp_path, CONFIG.with_name("worker.js").read_text(), server_with_token)
    try:
        expected = Llama.load().run(ASK)
        assert json.loads(worker.get("/")) == expected
        streamed = events(worker.get("/stream?q=What%20is%20RoPE%3F"))
        assert "".join(chunk["response"] for chunk in streamed) and streamed[-1]["usage"]["completion_tokens"] > 5
        assert json.loads(worker.get("/?t=9"))["error"].endswith("5006: Error: '/temperature' must be <= 5")
    finally:
        worker.close()


def test_the_workers_of_the_model_page_run_unchanged(server_with_token: RunningServer, tmp_path: Path):
    page = next(Path(ROOT).parent.glob("*/contract/model-page.txt"), None)
    if page is None:
        pytest.skip("the page's own examples are missing; they belong in contract/ beside this checkout")
    workers = re.findall(r"export default \{.*?\} satisfies ExportedHandler<Env>;", page.read_text(), re.S)
    assert len(workers) == 2
    for i, code in enumerate(workers):
        # workerd runs JavaScript: remove the types, as the build of a Worker does.
        code = code.replace(" satisfies ExportedHandler<Env>", "").replace("): Promise<Response>", ")")
        folder = tmp_path / str(i)
        folder.mkdir()
        worker = Worker(folder, code, server_with_token)
        try:
            found = worker.get("/")
            if "data: " in found:
                assert "".join(chunk["response"] for chunk in events(found))
            else:
                assert "response" in found and json.loads(found)
        finally:
            worker.close()
