"""The CUDA path on emulated GPUs: two and four of them against NumPy, with graphs and LoRA. Faults are noticed."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from llama3 import Llama
from llama3.checkpoint import Checkpoint, load_adapter, load_folder
from llama3.cpu_model import CpuModel
from llama3.cuda import device as device_module
from llama3.cuda import nccl
from llama3.cuda.linear import linear_add
from llama3.cuda.memory import needed_bytes, weight_bytes
from llama3.cuda.transformer import Transformer
from llama3.cuda.weights import upload_weights, uploaded_bytes
from llama3.engine import Engine
from llama3.errors import DeviceError, RequestError
from llama3.model.batch import Batch
from llama3.model.split import split_config
from llama3.quantize import quantize
from llama3.request import Request
from llama3.sampling_params import SamplingParams
from llama3.tensor_parallel import gpu
from llama3.tensor_parallel.channel import RankError
from tests.cuda.emulator.build import COMPILER
from tests.tensor_parallel.emulated_gpus import Gpu, gpus
from tests.tensor_parallel.in_threads import relative
from tests.tiny import random_adapter, random_tensors, tiny_config, write_adapter, write_hf

SLOW = pytest.mark.slow
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the kernels with")
CONFIG = tiny_config(dim=128, n_heads=4, n_kv_heads=4, head_dim=64, hidden_dim=256, vocab_size=131, max_seq_len=160)
PROMPT = np.random.RandomState(0).randint(0, 131, 70).tolist()  # more than 64 rows: cuBLAS


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    tensors = random_tensors(CONFIG, dtype="bf16")
    table = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = (table.astype("f4") * np.sqrt(CONFIG.dim)).astype(table.dtype)
    return write_hf(tmp_path_factory.mktemp("gpus"), CONFIG, tensors)


@pytest.fixture(scope="module")
def checkpoint(folder) -> Checkpoint:
    return load_folder(folder)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    folder = write_adapter(tmp_path_factory.mktemp("adapter"), random_adapter(CONFIG, 1), lora_alpha=1)
    return {"all": load_adapter(folder, CONFIG)}


def logits(model, lora=None) -> list[np.ndarray]:
    """A prompt of many rows, a few rows of two sequences, and one row; one of the two has the adapter."""
    cache, found = model.new_cache(2, 128), []
    for rows in ([(0, PROMPT)], [(0, [5]), (1, [9, 8, 7])], [(1, [3])]):
        batch = Batch.of(rows, [lora if slot == 0 else None for slot, _ in rows])
        found.append(model.forward(batch, cache, np.arange(len(batch.tokens))))
    return found


def answers(model, lora=None, **params) -> list[list[int]]:
    """Three requests in two slots: graphs of one and two rows, reused slots, and for an adapter steps without one."""
    engine = Engine(model, 2, 128)
    sampling = SamplingParams(**{"temperature": 0} | params)
    requests = [Request(prompt, sampling, n) for prompt, n in ((PROMPT[:40], 7), ([7, 8, 9], 2), (PROMPT[:50], 4))]
    requests[0].adapter = lora
    for request in requests:
        engine.submit(request)
    while engine.busy:
        engine.step()
    assert [request.error for request in requests] == [None] * 3
    return [request.tokens for request in requests]


@pytest.mark.parametrize("lora", [None, "all"])
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=SLOW)])
def test_gpus_together_compute_what_numpy_does_and_have_the_same_bits(folder, checkpoint, adapters, ranks, lora):
    model = gpus(folder, ranks, adapters)
    for found, right in zip(logits(model, lora), logits(CpuModel(CONFIG, checkpoint.weights, adapters), lora)):
        assert relative(found, right) <= 1e-2
    first, *others = model.nccl.sums
    assert len(first) == 3 * 2 * CONFIG.n_layers and all(other == first for other in others)


@pytest.mark.parametrize(
    ("lora", "params"),
    [
        (None, {}),
        pytest.param("all", {"temperature": 0.8, "seed": 1, "top_k": 20, "repetition_penalty": 1.1}, marks=SLOW),
    ],
)
def test_answers_through_graphs_are_those_of_one_gpu(folder, checkpoint, adapters, lora, params):
    """Captured and replayed graphs, begun before the last step's tokens are read."""
    device = Gpu()
    one = Transformer(device, CONFIG, upload_weights(device, checkpoint.weights), adapters)
    model = gpus(folder, 2, adapters)
    assert answers(model, lora, **params) == answers(one, lora, **params)
    assert len(set(model.nccl.sums[0])) > 20 and model.nccl.sums[0] == model.nccl.sums[1]


@pytest.mark.parametrize("lora", [None, pytest.param("all", marks=SLOW)])
@pytest.mark.parametrize("bits", [4, pytest.param(8, marks=SLOW)])
def test_gpus_share_quantised_weights(folder, adapters, tmp_path, bits, lora):
    """With the codes as they are: of 4 bits, each row of a rank's wo and w2 has one group of 128 columns."""
    quantised = quantize(folder, tmp_path / "new", bits)
    model, right = gpus(quantised, 2, adapters), CpuModel(CONFIG, load_folder(quantised).weights, adapters)
    assert {w.kind for w in vars(model.weights.layers[0]).values() if hasattr(w, "kind")} == {f"Int{bits}"}
    for found, expected in zip(logits(model, lora), logits(right, lora)):
        assert relative(found, expected) <= 1e-2
    assert answers(model, lora) == answers(right, lora)
    assert model.nccl.sums[0] == model.nccl.sums[1]


@pytest.mark.slow
def test_parts_that_the_kernels_do_not_take_become_bfloat16(folder, tmp_path):
    """Four ranks have 64 columns of wo and w2 each, half of a group."""
    quantised = quantize(folder, tmp_path / "new", 4)
    model, right = gpus(quantised, 4), CpuModel(CONFIG, load_folder(quantised).weights)
    layer = model.weights.layers[0]
    assert [getattr(w, "kind", None) for w in (layer.wqkv, layer.wo, layer.w13, layer.w2)] == ["Int4", None] * 2
    for found, expected in zip(logits(model), logits(right)):
        assert relative(found, expected) <= 1e-2


def test_a_gpu_needs_room_for_the_codes_of_its_part(folder, tmp_path, monkeypatch):
    checkpoint, device = load_folder(quantize(folder, tmp_path / "new", 8)), Gpu()
    part, shape = gpu.uploaded_part(checkpoint, 1, 2), split_config(CONFIG, 2)
    assert uploaded_bytes(part) < weight_bytes(shape)
    monkeypatch.setitem(device_module.BACKENDS, "cuda", lambda index: device)
    device.free = needed_bytes(shape, 2, shape.max_seq_len, uploaded_bytes(part)) + nccl.MEMORY
    assert gpu.ready("cuda:1", checkpoint, 1, 2, 2) is device
    device.free -= 1
    with pytest.raises(DeviceError, match=r"^too little GPU memory"):
        gpu.ready("cuda:1", checkpoint, 1, 2, 2)


def test_each_gpu_reads_its_share_of_the_layers_and_the_embedding(folder, checkpoint):
    model = gpus(folder, 2)
    whole = sum(w.nbytes for layer in checkpoint.weights.layers for w in vars(layer).values())
    ends = 2 * checkpoint.weights.output.nbytes
    rope = 2 * model.rope_table.cos.nbytes
    for device in model.gpus:
        assert device.uploaded <= 1.05 * whole / 2 + ends + rope


def columns_of_another_rank(model):
    layer = model.weights.layers[0]
    layer.wo[...] = np.roll(np.array(layer.wo), 64, axis=1)


def a_sum_left_out(model):
    original, count = model.group.all_reduce, iter(range(10**6))

    def all_reduce(x):
        before = np.array(x)
        original(x)
        if next(count) == 1:
            x[...] = before

    model.group.all_reduce = all_reduce


def residual_added_twice(model):
    def add(i, name, x, w, out, lora):
        linear_add(model.device, x, w, out)
        model.group.all_reduce(out)
        if i == 0 and name == "wo":
            model.device.copy(np.array(out * 2), into=out)

    model._add = add


@pytest.mark.parametrize("fault", [columns_of_another_rank, a_sum_left_out, residual_added_twice])
def test_a_planted_fault_is_noticed(folder, checkpoint, fault):
    model = gpus(folder, 2)
    fault(model)
    assert relative(logits(model)[0], logits(CpuModel(CONFIG, checkpoint.weights))[0]) > 2e-2


@pytest.mark.parametrize("how", ["gone", "failed"])
def test_a_rank_that_ends_in_the_middle_of_a_sum_is_an_error_and_no_hang(folder, how):
    model = gpus(folder, 2)
    cache = model.new_cache(1, 128)
    (channel,) = model.ranks.channels
    original = model.group.announce

    def announce(*what):
        model.group.announce = original
        if how == "failed":  # what the rank would send; it is received by the thread that watches
            model.ranks.failed(RankError("rank 1: no memory"), model.group.library.abort)
        else:
            channel.end()

    model.group.announce = announce
    with pytest.raises(RankError, match=r"^device cuda:0-1: rank 1(: no memory| is gone); load the model again$"):
        model.forward(Batch.of([(0, [1, 2, 3])]), cache, np.arange(3))
    with pytest.raises(RankError, match="load the model again"):
        model.forward(Batch.of([(0, [1, 2, 3])]), cache, np.arange(3))


def test_a_trace_is_refused(folder):
    model = gpus(folder, 2)
    with pytest.raises(RequestError, match=r"^a trace needs all heads on one GPU, and this model is on cuda:0-1$"):
        model.forward(Batch.of([(0, [1])]), model.new_cache(1, 8), np.arange(1), lambda name, value: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_kv_heads": 1}, r"n_kv_heads is 1; 2 ranks need a multiple of 2\. Use a single device"),
        ({"hidden_dim": 192}, r"hidden_dim is 192; 2 ranks need a multiple of 128\. Use a single device"),
        ({}, r"several GPUs need NCCL \(.*\); pip install nvidia-nccl-cu13 \(nvidia-nccl-cu12 for CUDA 12\)"),
    ],
)
def test_what_a_start_lacks_is_said_in_one_line(tmp_path, monkeypatch, changes, message):
    """Without NCCL, which this machine may have."""

    def no_library(path):
        raise OSError(f"{path}: cannot open shared object file")

    monkeypatch.setattr(nccl, "ctypes", SimpleNamespace(CDLL=no_library))  # not for all of Python
    config = replace(CONFIG, **changes)
    folder = write_hf(tmp_path, config, random_tensors(config, dtype="bf16"))
    with pytest.raises(DeviceError, match=f"^(device cuda:0-1: )?{message}$"):
        Llama.load(folder, device="cuda:0-1")
