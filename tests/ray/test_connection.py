"""Programs at real clusters: one that does not fit is told so in a line; one of its own ends without a trace."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.cli.running import PATIENCE, PROGRAM
from tests.ray.loopback import Loopback, loopback_or_skip

pytestmark = pytest.mark.slow

CONNECT = """if True:
    import sys
    import llama3.ray.cluster
    llama3.ray.cluster.import_ray().__version__ = sys.argv[2]
    with llama3.ray.cluster.cluster(sys.argv[1]):
        pass
"""


@pytest.mark.parametrize(
    ("version", "environment", "says"),
    [
        ("2.0.0", {}, "runs Ray [0-9.]+ and Python [0-9.]+, and this program Ray 2.0.0 and Python "),
        (None, {"RAY_AUTH_TOKEN": "another"}, "wants a token, or another one: set RAY_AUTH_MODE=token"),
        (None, {"RAY_AUTH_MODE": "disabled"}, "wants a token, or another one: set RAY_AUTH_MODE=token"),
    ],
)
def test_a_program_that_does_not_fit_the_cluster_is_told_so(
    version: str | None,
    environment: dict[str, str],
    says: str,
    network: Loopback,
    ray_environment: dict[str, str],
    ray_token: dict[str, str],
    ray_address: str,
) -> None:
    import ray

    command = network.command(sys.executable, "-c", CONNECT, ray_address, version or ray.__version__)
    ran = subprocess.run(
        command,
        env=ray_environment | ray_token | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ran.stdout == "" and f"RequestError: the cluster at {ray_address} {says}" in ran.stderr


def test_a_cluster_of_one_s_own_leaves_nothing_behind() -> None:
    """No process, no file, and no token in the home folder."""
    with loopback_or_skip() as network, tempfile.TemporaryDirectory(prefix="ray-") as folder:
        (Path(folder) / "r.jsonl").write_text('{"prompt": "a", "max_tokens": 3}\n')
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "LLAMA3_"))}
        mine |= {"HOME": folder, "RAY_TMPDIR": folder, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = network.command(*PROGRAM, "batch", "r.jsonl", "--to", "a.jsonl", "--ray", "--device", "cpu")
        ran = subprocess.run(command, env=mine, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
        assert ran.returncode == 0 and ran.stdout == "" and ran.stderr.startswith("1 answers, 3 tokens"), ran.stderr
        assert ran.stderr.count("\n") == 1
        assert {path.name for path in Path(folder).iterdir()} == {"r.jsonl", "a.jsonl"}
        assert network.processes("") == [network.holder.pid]
