"""Downloads from a small local hub are complete or leave nothing behind that could be mistaken for the model.

Each runs in a process of its own, with its own home folder. The oracle for the cache is huggingface_hub itself.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from llama3.checkpoint import load_folder
from llama3.resources import resource
from tests.checkpoint.hub_server import Hub, etag, serve
from tests.checkpoint.machine import REPO, Call, Interrupted, Machine, interrupt_everywhere
from tests.quantised_files import BY_NAME, write
from tests.tiny import random_tensors, tiny_config, write_hf

FIRST, LAST = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SKIPPED = ["README.md", "pytorch_model.bin", "consolidated.safetensors", "original/consolidated.00.pth"]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serve(Hub(REPO, model_files(tmp_path / "source"))) as hub:
        yield hub


def model_files(folder: Path, seed: int = 0) -> dict[str, bytes]:
    config = tiny_config()
    write_hf(folder, config, random_tensors(config, seed, "bf16"), shards=2)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return files | {name: b"not needed" for name in SKIPPED}


@pytest.fixture
def machine(hub: Hub, tmp_path: Path) -> Machine:
    return Machine(hub, tmp_path / "home")


def same_model(folder: Path, hub: Hub) -> bool:
    """Whether the folder loads, and is byte for byte what the hub has."""
    load_folder(folder)
    return all((folder / path.name).read_bytes() == hub.files[path.name] for path in folder.iterdir())


def test_the_needed_files_arrive_in_the_cache_and_a_second_download_transfers_nothing(hub: Hub, machine: Machine):
    first, second, third = machine.run(["download", REPO], ["download", REPO], ["resolve", REPO])
    assert first == second == third
    assert {path.name for path in first.iterdir()} == needed(hub).keys()
    assert same_model(first, hub)
    assert [len(hub.gets(name)) for name in (FIRST, LAST, "config.json", *SKIPPED)] == [2, 2, 1, 0, 0, 0, 0]


def test_a_quantised_repository_arrives_whole_and_loads(machine: Machine, hub: Hub, tmp_path: Path):
    source, tensors = write(tmp_path / "quantised", BY_NAME["GPTQ v2 with zeros"], vocab_size=2048)
    (source / "tokenizer.model").write_bytes((resource("weights", "demo") / "tokenizer.model").read_bytes())
    (source / "quantize_config.json").write_text(json.dumps(BY_NAME["GPTQ v2 with zeros"].fields))
    split(source / "model.safetensors")
    hub.files = {path.name: path.read_bytes() for path in source.iterdir()} | {name: b"no" for name in SKIPPED}
    (folder,) = machine.run(["download", REPO])
    assert {path.name for path in folder.iterdir()} == {path.name for path in source.iterdir()}
    assert same_model(folder, hub)
    found = load_folder(folder)
    assert found.scheme is not None and found.scheme.description.startswith("GPTQ, int4")
    assert found.tokenizer is not None
    assert np.array_equal(found.weights.layers[0].w1.rows(0, 192), tensors["model.layers.0.mlp.gate_proj.weight"])


def split(file: Path) -> None:
    """Put the tensors of one file into two shards with an index."""
    tensors, index = safetensors.numpy.load_file(file), {}
    for name, chosen in ((FIRST, sorted(tensors)[::2]), (LAST, sorted(tensors)[1::2])):
        safetensors.numpy.save_file({key: tensors[key] for key in chosen}, file.parent / name)
        index |= dict.fromkeys(chosen, name)
    (file.parent / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    file.unlink()


def test_the_library_finds_the_same_snapshot_in_its_cache(hub: Hub, machine: Machine):
    (folder,) = machine.run(["download", REPO])
    script = f"from huggingface_hub import snapshot_download as s; print(s({REPO!r}, local_files_only=True))"
    environment = os.environ | {"HF_HOME": str(machine.home)}
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert Path(found.stdout.strip()) == folder


def test_a_download_to_a_folder_is_complete_and_can_be_repeated(hub: Hub, machine: Machine, tmp_path: Path):
    hub.files["original/tokenizer.model"] = b"this is not a vocabulary"
    to = tmp_path / "weights" / "tiny"
    assert machine.run(["download", REPO, str(to)], ["download", REPO, str(to)]) == [to, to]
    assert not any(path.is_symlink() for path in to.iterdir())
    assert {path.name for path in to.iterdir()} == set(hub.files) - set(SKIPPED) - {"original/tokenizer.model"} | {
        "tokenizer.model"
    }
    assert list(to.parent.iterdir()) == [to]
    assert len(hub.gets(FIRST)) == 2  # one at the hub, one at the CDN it points to


def test_a_folder_that_holds_something_else_is_not_touched(hub: Hub, machine: Machine, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    message = machine.fail(["download", REPO, str(tmp_path / "mine")])
    assert "exists and does not hold this model" in message
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    assert not hub.gets(FIRST)


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_cut_connection_is_resumed_at_the_byte_where_it_broke(hub: Hub, machine: Machine, reset: bool):
    hub.cuts, hub.reset = [10_000, 20_000], reset
    (folder,) = machine.run(["download", REPO])
    assert same_model(folder, hub)
    parts = [request for request in hub.gets(FIRST) if request.server == "cdn"]
    starts = [int(request.headers["range"].removeprefix("bytes=").removesuffix("-")) for request in parts]
    assert len(parts) == 3
    # A reset may lose bytes that were sent; a closed connection loses none.
    assert starts == [0, 10_000, 30_000] or (reset and 0 == starts[0] <= starts[1] <= starts[2] <= 30_000)


def test_a_server_without_ranges_sends_the_whole_file_again(hub: Hub, machine: Machine):
    hub.cuts, hub.ranges = [10_000, 20_000], False
    (folder,) = machine.run(["download", REPO])
    assert same_model(folder, hub)


def test_a_request_to_a_busy_server_is_repeated(hub: Hub, machine: Machine):
    hub.statuses = [503, 429]
    (folder,) = machine.run(["download", REPO])
    assert same_model(folder, hub)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "killed"])
@pytest.mark.parametrize("to_folder", [False, True], ids=["cache", "folder"])
def test_an_interrupted_download_is_not_taken_for_complete_and_continues_where_it_stopped(
    hub: Hub, machine: Machine, tmp_path: Path, how: signal.Signals, to_folder: bool
):
    to = tmp_path / "tiny"
    call = ["download", REPO, str(to)] if to_folder else ["download", REPO]
    hub.stall = 10_000
    process, results = machine.start(call)
    assert hub.stalled.wait(300)
    while not unfinished_bytes(tmp_path):
        time.sleep(0.01)
    os.kill(process.pid, how)
    process.join(300)
    assert process.exitcode
    with pytest.raises(EOFError):
        results.recv()
    received = unfinished_bytes(tmp_path)
    assert not to.exists()
    assert "HF_HUB_OFFLINE is set" in machine.fail(["resolve", REPO], HF_HUB_OFFLINE="1")

    hub.stall, before = None, len(hub.requests)
    hub.released.set()
    (folder,) = machine.run(call)
    assert same_model(folder, hub)
    resumed = next(request for request in hub.requests[before:] if request.server == "cdn")
    assert resumed.headers["range"] == f"bytes={received}-"
    assert not list(tmp_path.rglob("*.incomplete")) and not list(tmp_path.rglob("*.partial"))


def unfinished_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.incomplete"))


@pytest.mark.parametrize("into", ["cache", "folder", "cache with an older revision"])
def test_ctrl_c_before_any_file_event_leaves_a_complete_model_or_none(
    hub: Hub, machine: Machine, tmp_path: Path, into: str
):
    before, earlier = None, None
    if into == "cache with an older revision":
        before, earlier = tmp_path / "before", needed(hub)
        Machine(hub, before).run(["download", REPO])
        hub.commit, hub.files = "f" * 40, model_files(tmp_path / "newer", seed=1)
    to = tmp_path / "tiny" if into == "folder" else None
    process, results = machine.start_function(interrupt_everywhere, to, before)
    outcomes: list[Interrupted] = results.recv()
    process.join()
    assert len(outcomes) > 4
    for outcome in outcomes:
        assert outcome.found in (earlier, needed(hub)), outcome.event
        assert outcome.repaired == needed(hub), outcome.event


def needed(hub: Hub) -> dict[str, bytes]:
    return {name: content for name, content in hub.files.items() if name not in SKIPPED}


def test_the_cache_serves_without_a_network(hub: Hub, machine: Machine):
    (folder,) = machine.run(["download", REPO])
    before = len(hub.requests)
    calls = ["resolve", REPO], ["download", REPO]
    assert machine.run(*calls, HF_HUB_OFFLINE="1") == [folder, folder]
    assert machine.run(*calls, HF_ENDPOINT="http://127.0.0.1:9") == [folder, folder]  # no server has this port
    assert len(hub.requests) == before


def test_without_network_and_cache_the_message_says_which_is_missing(machine: Machine):
    assert "HF_HUB_OFFLINE is set" in machine.fail(["download", REPO], HF_HUB_OFFLINE="1")
    message = machine.fail(["download", REPO], HF_ENDPOINT="http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in message and len(message.splitlines()) == 1


def test_weights_cached_without_their_tokenizer_are_completed(hub: Hub, machine: Machine):
    (folder,) = machine.run(["download", REPO])
    hub.files["tokenizer_config.json"] = b"{}"
    before = len(hub.requests)
    machine.run(["resolve", REPO])
    assert len(hub.requests) > before  # no tokenizer in the cache: perhaps the hub has one
    assert (folder / "tokenizer_config.json").is_file()


def test_the_token_is_sent_to_the_hub_only(hub: Hub, machine: Machine):
    hub.token = "hf_secret"
    (folder,) = machine.run(["download", REPO], HF_TOKEN="hf_secret")
    assert same_model(folder, hub)
    requests = [request for request in hub.requests if request.server == "cdn" or REPO in request.path]
    assert {request.server for request in requests} == {"hub", "cdn"}
    for request in requests:
        assert ("authorization" in request.headers) == (request.server == "hub"), request


@pytest.mark.parametrize("token", [None, "hf_without_access"])
def test_a_gated_repository_is_explained_in_two_lines(hub: Hub, machine: Machine, token: str | None):
    hub.token, hub.gated = "hf_secret", True
    message = machine.fail(["download", REPO], **({"HF_TOKEN": token} if token else {}))
    first, second = message.splitlines()
    assert f"{REPO} is gated" in first and f"accept its licence at {hub.endpoint}/{REPO}" in first
    assert "HF_TOKEN" in second and "hf auth login" in second


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (["download", "nobody/nothing"], "no such repository"),
        (["resolve", "nobody/nothing"], "no such folder here, and no such repository"),
        (["download", REPO, None, "no-such-branch"], "no such revision"),
        (["download", "not a name"], "expected OWNER/NAME"),
    ],
)
def test_what_the_hub_does_not_have_is_named_in_one_line(machine: Machine, call: Call, expected: str):
    message = machine.fail(call)
    assert expected in message and call[1] in message and len(message.splitlines()) == 1


def test_a_private_repository_says_that_a_token_may_help(hub: Hub, machine: Machine):
    hub.token = "hf_secret"
    assert "HF_TOKEN" in machine.fail(["download", REPO])


def test_a_wrong_token_is_named_as_the_cause(hub: Hub, machine: Machine):
    hub.token = "hf_secret"
    message = machine.fail(["download", REPO], HF_TOKEN="hf_mistyped")
    assert "refuses your token" in message and len(message.splitlines()) == 1


def test_a_repository_in_another_form_is_refused_before_the_transfer(hub: Hub, machine: Machine):
    hub.files = {"params.json": b"{}", "consolidated.00.pth": b"pickle", "tokenizer.model": b""}
    message = machine.fail(["download", REPO])
    assert "expected config.json and *.safetensors" in message and "consolidated.00.pth" in message
    assert not hub.gets("consolidated.00.pth")


def test_what_cannot_fit_on_the_disk_is_refused_before_the_transfer(hub: Hub, machine: Machine):
    hub.claims[LAST] = 10**18
    assert "1000000000.00 GB must be downloaded, but only" in machine.fail(["download", REPO])
    assert not hub.gets(FIRST)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full, a disk that is always full")
def test_a_disk_that_fills_up_during_the_transfer_is_named(hub: Hub, machine: Machine, tmp_path: Path):
    gathering = tmp_path / "tiny.partial"
    gathering.mkdir()
    full = gathering / f"{FIRST}.{etag(FIRST, hub.files[FIRST])}.incomplete"
    full.symlink_to("/dev/full")
    message = machine.fail(["download", REPO, str(tmp_path / "tiny")])
    assert "the disk is full" in message and len(message.splitlines()) == 1
    assert not (tmp_path / "tiny").exists()
    full.unlink()
    (folder,) = machine.run(["download", REPO, str(tmp_path / "tiny")])
    assert same_model(folder, hub)


def test_a_damaged_file_is_deleted(hub: Hub, machine: Machine):
    hub.damaged = True
    assert "damaged in transfer" in machine.fail(["download", REPO])
    assert unfinished_bytes(machine.home) == 0
    hub.damaged = False
    (folder,) = machine.run(["download", REPO])
    assert same_model(folder, hub)


def test_an_etag_cannot_lead_out_of_the_cache(hub: Hub, machine: Machine):
    hub.etags[FIRST] = "../../../../escaped"
    assert "plain ETag" in machine.fail(["download", REPO])
