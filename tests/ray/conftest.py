"""A network of loopback alone, and a Ray cluster in it, for all tests of this folder."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray.loopback import Loopback, loopback_or_skip
from tests.ray.running import RunningService, ServeCluster

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def network() -> Iterator[Loopback]:
    with loopback_or_skip() as network:
        yield network


@pytest.fixture(scope="session")
def ray_environment() -> Iterator[dict[str, str]]:
    """The environment of programs that use Ray: a home and a folder for its files that are removed, and a token.

    The folder's name is short, because a socket's path may have 107 characters.
    """
    folder = tempfile.mkdtemp(prefix="ray-")
    try:
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "LLAMA3_"))}
        mine |= {"HOME": folder, "RAY_TMPDIR": folder, "TMPDIR": folder, "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"}
        yield mine
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_token() -> dict[str, str]:
    """What the cluster and its users have in common."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@pytest.fixture(scope="session")
def ray_address(network: Loopback, ray_environment: dict[str, str], ray_token: dict[str, str]) -> Iterator[str]:
    """The address of a cluster that all tests share."""
    command = network.command(sys.executable, str(Path(__file__).parent / "hold_cluster.py"))
    with subprocess.Popen(
        command, env=ray_environment | ray_token, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout
        address = holder.stdout.readline().strip()
        assert address, "the cluster did not start"
        yield address
        holder.communicate()


@pytest.fixture(scope="module")
def serve_cluster(
    network: Loopback, ray_environment: dict[str, str], ray_token: dict[str, str], ray_address: str
) -> Iterator[ServeCluster]:
    cluster = ServeCluster(network, ray_environment | ray_token, ray_address)
    yield cluster
    cluster.stop()


@pytest.fixture
def service(serve_cluster: ServeCluster) -> RunningService:
    return serve_cluster.running()
