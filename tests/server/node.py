"""Runs programs for node: `LLAMA3_NODE_MODULES` names a folder with the packages of `clients/node/package.json`."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.server.running import ROOT

PACKAGES = Path(ROOT) / "tests" / "server" / "clients" / "node" / "package.json"
MODULES = Path(os.environ.get("LLAMA3_NODE_MODULES") or "node_modules").resolve()
WANTED = list(json.loads(PACKAGES.read_text())["dependencies"])

needs_node = pytest.mark.skipif(
    not all((MODULES / name).is_dir() for name in WANTED),
    reason=f"LLAMA3_NODE_MODULES names no folder with the npm packages of {PACKAGES.relative_to(ROOT)}",
)

# Nothing but this machine can be reached: other requests go to a proxy that is not there.
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"),
    "NO_PROXY": "localhost,127.0.0.1",
    "PATH": f"{MODULES / '.bin'}{os.pathsep}{os.environ['PATH']}",
    "CI": "true",  # wrangler and vitest ask nothing and watch no files
    "WRANGLER_SEND_METRICS": "false",
}


def run_node(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The output of a program in `MODULES` that runs in this folder."""
    environment = {**ENVIRONMENT, **variables}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def copy_project(source: Path, to: Path) -> Path:
    """A copy of this folder, whose programs find the packages in `MODULES`."""
    folder = shutil.copytree(source, to, ignore=shutil.ignore_patterns("node_modules"))
    (folder / "node_modules").symlink_to(MODULES)
    return folder


@contextlib.contextmanager
def wrangler_dev(project: Path, **variables: str) -> Iterator[httpx2.Client]:
    """A client of the Worker that `wrangler dev --env local` runs in this folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["wrangler", "dev", "--env", "local", "--ip", "127.0.0.1", "--port", str(port), "--inspector-port", "0"]
    log = project / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=project, env={**ENVIRONMENT, **variables}, stdout=out, stderr=out, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 60
        while f"Ready on http://127.0.0.1:{port}" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            yield client
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # workerd, too
        process.wait()
