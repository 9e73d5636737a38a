"""The address of a cluster, and what a cluster without GPUs or with too few has room for. Ray itself is not needed."""

import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llama3 import RequestError
from llama3.ray import cluster, placement
from llama3.ray.cluster import address_of, check_address
from llama3.ray.placement import Placement, place


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def write_current_cluster(tmp_path: Path, address: str) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(address + "\n")


@pytest.mark.parametrize("address", ["10.0.0.1:6379", "[::1]:6379", "head.example:1", "auto", "local"])
def test_an_address_is_a_host_and_a_port(address: str) -> None:
    assert check_address(address) == address


@pytest.mark.parametrize("address", ["requests.jsonl", "10.0.0.1", ":6379", "ray://head:10001", "a b:1", "head:6379/x"])
def test_anything_else_is_refused(address: str) -> None:
    with pytest.raises(RequestError, match="is no address of a Ray cluster; expected HOST:PORT of its head"):
        check_address(address)


def test_without_an_address_a_cluster_is_found_or_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, closed_port: int
) -> None:
    assert address_of(None) is None and address_of("auto") is None
    write_current_cluster(tmp_path, f"127.0.0.1:{closed_port}")
    assert address_of(None) is None  # it has ended
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = f"127.0.0.1:{listener.getsockname()[1]}"
        (tmp_path / "ray" / "ray_current_cluster").write_text(running)
        assert address_of(None) == address_of("auto") == address_of(running) == running
        assert address_of("local") is None
        monkeypatch.setenv("RAY_ADDRESS", "local")
        assert address_of(None) is None and address_of(running) == running


def test_nothing_at_the_address_is_said_at_once(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    with pytest.raises(RequestError, match=f"no Ray cluster at 127.0.0.1:{closed_port} .Connection refused."):
        address_of(f"127.0.0.1:{closed_port}")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    with pytest.raises(RequestError, match="Connection refused"):
        address_of(None)
    with pytest.raises(RequestError, match=r"no Ray cluster at 127\.0\.0\.1:99999"):
        address_of("127.0.0.1:99999")
    with pytest.raises(RequestError, match=r"no Ray cluster at a\.\.b:1 "):
        address_of("a..b:1")


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RequestError, match=r"pip install 'llama3\[ray\]'"), cluster.cluster("local"):
        pass


def on_machines(monkeypatch: pytest.MonkeyPatch, *machines: dict[str, float]) -> None:
    """Let the cluster have these machines, and one that is lost."""
    nodes: list[Any] = [{"Alive": True, "Resources": resources} for resources in machines]
    nodes.append({"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}})
    monkeypatch.setattr(placement, "import_ray", lambda: SimpleNamespace(nodes=lambda: nodes))


@pytest.mark.parametrize(
    ("device", "replicas", "expected"),
    [
        ("cuda", None, Placement(6, "cuda", 1, 0)),
        ("cuda:3", 2, Placement(2, "cuda", 1, 0)),
        ("auto", None, Placement(6, "auto", 1, 0)),
        ("cuda:2-3", None, Placement(3, "cuda:0-1", 2, 0)),
        ("cpu", None, Placement(2, "cpu", 0, 8)),
        ("cpu", 4, Placement(4, "cpu", 0, 4)),
        ("cpu", 5, Placement(5, "cpu", 0, 2)),
        ("cpu", 32, Placement(32, "cpu", 0, 0.5)),
    ],
)
def test_gpus_and_cores_are_shared_out(
    device: str, replicas: int | None, expected: Placement, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_machines(monkeypatch, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}, {})
    assert place(device, replicas) == expected


@pytest.mark.parametrize(
    ("device", "replicas", "at_most", "expected"),
    [
        ("cuda", None, 4, Placement(4, "cuda", 1, 0)),  # of six GPUs
        ("cuda", None, 9, Placement(6, "cuda", 1, 0)),
        ("cuda", 2, 9, Placement(2, "cuda", 1, 0)),
        ("cpu", None, 1, Placement(1, "cpu", 0, 8)),  # of two machines
        ("cpu", 1, 4, Placement(1, "cpu", 0, 4)),  # later there may be two on each machine
    ],
)
def test_the_default_number_is_not_above_the_most_and_the_most_have_room(
    device: str, replicas: int | None, at_most: int, expected: Placement, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_machines(monkeypatch, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}, {})
    assert place(device, replicas, at_most) == expected


@pytest.mark.parametrize("replicas", [0, -1, 1.5])
def test_a_number_of_replicas_below_one_is_refused(replicas: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    on_machines(monkeypatch, {"CPU": 8.0})
    with pytest.raises(RequestError, match=r"replicas is .*; expected a whole number of at least 1"):
        place("cpu", replicas)


def test_a_cluster_without_the_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    on_machines(monkeypatch, {"CPU": 8.0, "GPU": 3.0})
    with pytest.raises(RequestError, match="4 replicas with 1 GPU each: the Ray cluster has GPUs for 3"):
        place("cuda", 4)
    with pytest.raises(RequestError, match="1 replica with 4 GPUs each: the Ray cluster has GPUs for 0"):
        place("cuda:0-3")
    on_machines(monkeypatch, {"CPU": 8.0})
    with pytest.raises(RequestError, match="no machine of the Ray cluster has a GPU; expected the device cpu"):
        place("cuda")
    assert place("auto") == Placement(1, "cpu", 0, 8)
