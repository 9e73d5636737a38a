"""`docs/worker/wrangler/`: `wrangler dev` and vitest run its Worker against the server, without Cloudflare."""

import json
import re
from pathlib import Path

import pytest

from llama3 import Llama
from tests.pages import blocks
from tests.server.clients.conftest import QUESTION, TOKEN, TOO_HOT
from tests.server.node import PACKAGES, copy_project, needs_node, run_node, wrangler_dev
from tests.server.running import ROOT, RunningServer

WORKER = Path(ROOT) / "docs" / "worker"


@pytest.fixture
def project(server: RunningServer, tmp_path: Path) -> Path:
    """The shipped project, with the address of the server."""
    folder = copy_project(WORKER, tmp_path / "worker") / "wrangler"
    config = folder / "wrangler.jsonc"
    config.write_text(config.read_text().replace(":8000", f":{server.port}"))
    return folder


@needs_node
def test_wrangler_dev_gives_the_answers_streams_and_errors_of_the_server(project: Path):
    with wrangler_dev(project, LLAMA3_TOKEN=TOKEN) as worker:
        assert worker.get("/").json() == Llama.load().run({"messages": QUESTION, "temperature": 0})
        chunks = re.findall(r"^data: (.*)$", worker.get("/stream", params={"q": "What is RoPE?"}).text, re.M)
        assert chunks[-1] == "[DONE]" and json.loads(chunks[-2])["usage"]["completion_tokens"] > 5
        assert worker.get("/?t=9").json() == {"error": f"AiError: 5006: Error: {TOO_HOT}"}


@needs_node
def test_vitest_runs_the_shipped_tests_of_the_worker(project: Path):
    ran = run_node(project, "vitest", "run", "--reporter=json", "--outputFile=report.json", LLAMA3_TOKEN=TOKEN)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads((project / "report.json").read_text())
    written = re.findall(r"^it\(", (project / "test" / "ai.test.js").read_text(), re.M)
    assert report["numPassedTests"] == report["numTotalTests"] == len(written)


def test_the_project_names_the_versions_that_are_tested():
    shipped = json.loads((WORKER / "wrangler" / "package.json").read_text())["devDependencies"]
    tested = json.loads(PACKAGES.read_text())["dependencies"]
    local = shipped.pop("llama3-ai").removeprefix("file:")
    assert (WORKER / "wrangler" / local / "plugin.cjs").is_file()
    assert shipped == {name: tested[name] for name in shipped}


def test_the_page_shows_the_shipped_configuration():
    (shown,) = [block.text for block in blocks(Path(ROOT) / "docs" / "server.md") if block.language == "jsonc"]
    config = (WORKER / "wrangler" / "wrangler.jsonc").read_text()
    assert re.sub(r"\s", "", shown) in re.sub(r"//.*|\s", "", config)
