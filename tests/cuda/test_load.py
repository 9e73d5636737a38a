"""`Llama.load(device="cuda")` with the demo's weights gives the text and the logits of the CPU, or a clear refusal."""

import json

import numpy as np
import pytest

from llama3 import Llama
from llama3.checkpoint import load_folder
from llama3.cuda import device as devices
from llama3.cuda.load import best_device
from llama3.errors import DeviceError, RequestError
from llama3.resources import resource
from tests.cuda.emulator.device import EmulatedDevice
from tests.tiny import random_tensors, tiny_config, write_hf

QUESTION = [{"role": "user", "content": "What is RoPE?"}]


@pytest.fixture
def cuda(device, monkeypatch):
    """The device that the name "cuda" opens in these tests."""
    monkeypatch.setitem(devices.BACKENDS, "cuda", lambda index: device)
    return device


def test_the_demo_gives_the_same_answer_as_in_numpy(cuda):
    reported = []
    llama = Llama.load(device="cuda", on_upload=lambda done, total: reported.append((done, total)))
    assert llama.device == "cuda" and reported[-1] == (llama.checkpoint.parameters,) * 2
    found, expected = (one.chat(QUESTION, temperature=0, max_tokens=10, logprobs=2) for one in (llama, Llama.load()))
    assert found.text == expected.text and found.tokens == expected.tokens
    for ours, theirs in zip(found.pieces, expected.pieces):
        assert abs(ours.logprob - theirs.logprob) < 0.1


def test_json_that_follows_a_schema(cuda):
    """Masks are uploaded to the device, and forced tokens are read in one step."""
    schema = {
        "type": "object",
        "properties": {"about": {"enum": ["RoPE", "the sampler"]}, "right": {"type": "boolean"}},
        "required": ["about", "right"],
        "additionalProperties": False,
    }
    found, expected = (
        Llama.load(device=name).chat(QUESTION, json_schema=schema, temperature=0) for name in ("cuda", "cpu")
    )
    assert found.text == expected.text and found.finish_reason == "stop"
    assert json.loads(found.text)["about"] in ("RoPE", "the sampler")


def test_the_logits_are_close_to_those_of_numpy(cuda):
    ids = [128, 7, 9, 300, 12]
    found, expected = (Llama.load(device=name).logits(ids) for name in ("cuda", "cpu"))
    error = ((found - expected) ** 2).sum(axis=-1) / (expected**2).sum(axis=-1)
    assert error.max() ** 0.5 <= 2e-2, error


def test_a_trace_has_every_name_and_the_values_of_numpy(cuda):
    found, expected = (Llama.load(device=name).trace([128, 7, 9, 300, 12], "**") for name in ("cuda", "cpu"))
    assert list(found) == list(expected) and "layers.3.heads.3.weights" in found
    for name, value in expected.items():
        seen = np.isfinite(value)  # scores of later positions are -inf
        assert np.array_equal(found[name][~seen], value[~seen]), name
        assert np.linalg.norm(found[name][seen] - value[seen]) <= 3e-2 * np.linalg.norm(value[seen]), name


def test_too_little_memory_is_reported_before_anything_is_uploaded(cuda, monkeypatch):
    monkeypatch.setattr(cuda, "memory", lambda: (10**6, 10**9))
    monkeypatch.setattr(cuda, "upload", lambda *_: pytest.fail("uploaded"))
    with pytest.raises(DeviceError, match="too little GPU memory"):
        Llama.load(device="cuda")
    assert Llama.load(device="auto").device == "cpu"


def test_a_shape_that_the_kernels_do_not_support_only_runs_on_the_cpu(cuda, tmp_path):
    config = tiny_config()
    folder = write_hf(tmp_path, config, random_tensors(config))
    with pytest.raises(DeviceError, match="head_dim is 16"):
        Llama.load(folder, device="cuda")
    assert Llama.load(folder, device="auto").device == "cpu"


def test_auto_chooses_a_gpu_if_the_model_can_run_there(cuda, monkeypatch):
    checkpoint = load_folder(resource("weights", "demo"))
    monkeypatch.setattr("llama3.cuda.load.find_spec", lambda name: True)
    assert best_device(checkpoint, 1) == "cuda"
    monkeypatch.setattr("llama3.cuda.load.find_spec", lambda name: None)
    assert best_device(checkpoint, 1) == "cpu"


def test_the_second_gpu_is_the_second_gpu(monkeypatch):
    opened = []
    monkeypatch.setitem(devices.BACKENDS, "cuda", lambda index: opened.append(index) or EmulatedDevice())
    devices.open_device("cuda:1")
    devices.open_device("cuda")
    assert opened == [1, 0]


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CUDA", "", 0, None])
def test_a_name_that_is_no_device_is_refused(name):
    with pytest.raises(RequestError, match="expected cpu, cuda, cuda:1"):
        Llama.load(device=name)
