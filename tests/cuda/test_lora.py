"""LoRA adapters on a device: the kernels agree with float64, a tiny Llama agrees with NumPy, and rows without an
adapter do not change.
"""

import numpy as np
import pytest

from llama3.cpu_model import CpuModel
from llama3.cuda.launch import Kernel
from llama3.cuda.lora import Lora, upload_adapters
from llama3.cuda.transformer import Transformer
from llama3.cuda.weights import upload_weights
from llama3.engine import Engine, Request
from llama3.model.batch import Batch
from llama3.model.lora import LoraPair
from llama3.sampling_params import SamplingParams
from tests.cuda.kernel_checks import assert_close, bfloat16, random
from tests.cuda.test_transformer import CONFIG, assert_agree, tokens_of, weights_of

SHAPES = {
    "wq": (CONFIG.n_heads * CONFIG.head_dim, CONFIG.dim),
    "wk": (CONFIG.n_kv_heads * CONFIG.head_dim, CONFIG.dim),
    "wv": (CONFIG.n_kv_heads * CONFIG.head_dim, CONFIG.dim),
    "wo": (CONFIG.dim, CONFIG.n_heads * CONFIG.head_dim),
    "w1": (CONFIG.hidden_dim, CONFIG.dim),
    "w2": (CONFIG.dim, CONFIG.hidden_dim),
    "w3": (CONFIG.hidden_dim, CONFIG.dim),
}


def lora_pair(seed, rank, out, width, scale=1.0):
    """bfloat16 numbers in float32, so that NumPy and the device multiply by the same numbers."""
    a, b = random(seed, rank, width, scale=width**-0.5), random(seed + 1, out, rank, scale=scale * rank**-0.5)
    return LoraPair(a.astype(np.float32), b.astype(np.float32))


def adapter(seed, rank, matrices=tuple(SHAPES)):
    return [
        {name: lora_pair(seed + 20 * i + len(name), rank, *SHAPES[name], 0.5) for name in matrices} for i in range(2)
    ]


ADAPTERS = {"all": adapter(1, 4), "high": adapter(2, 64), "some": adapter(3, 9, ("wv", "w2"))}


@pytest.mark.parametrize("dtype", [bfloat16, np.float32])
@pytest.mark.parametrize(("out", "width", "rank"), [(64, 64, 1), (300, 192, 16), (515, 2112, 64)])
def test_the_added_product_agrees_with_float64(device, in_every_order, dtype, out, width, rank):
    """It is added to the middle columns of wider rows. Other columns, and rows without an adapter, do not change."""
    parts = [lora_pair(n, rank, out, width) for n in (1, 50)]
    config = CONFIG.__class__(**{**vars(CONFIG), "n_layers": 1})
    names = ["b", None, "a", None, "b"]
    x, before = random(9, len(names), width), random(8, len(names), out + 24, dtype=dtype)
    adapters = upload_adapters(device, config, {"a": [{"wk": parts[0]}], "b": [{"wk": parts[1]}]})
    batch = Batch.of([(i, [i]) for i in range(len(names))], names)
    uploaded = device.upload(x)

    def run():
        found = device.upload(before)
        Lora(device, adapters, batch).add(0, {"wq": 16, "wk": out, "wv": 8}, uploaded, found)
        return device.download(found)

    found, expected = in_every_order(run), before.astype(np.float64)
    for row, name in enumerate(names):
        if name:
            part = parts["ab".index(name)]
            expected[row, 16 : 16 + out] += part.b.astype("f8") @ (part.a.astype("f8") @ x[row].astype("f8"))
    assert_close(found, expected)
    assert np.array_equal(found[:, :16], before[:, :16]) and np.array_equal(found[:, -8:], before[:, -8:])
    assert np.array_equal(found[[1, 3]], before[[1, 3]])


def test_the_naive_kernel_adds_the_same(device, in_every_order):
    part, x, before = lora_pair(5, 8, 70, 128), random(6, 3, 128), random(7, 3, 70, dtype=np.float32)
    uploaded = [device.upload(array.astype(bfloat16)) for array in (part.a, part.b, x)]
    adapter_of_row = device.upload(np.array([0, -1, 0], np.int32))

    def run():
        found = device.upload(before)
        args = [*uploaded, adapter_of_row, found, *(np.int32(n) for n in (8, 128, 70, 70))]
        device.launch(Kernel("lora.cu", "lora_naive"), (3, 3), (32,), args)
        return device.download(found)

    expected = before + (x.astype("f8") @ part.a.T.astype("f8")) @ part.b.T.astype("f8") * [[1], [0], [1]]
    assert_close(in_every_order(run), expected)


@pytest.fixture
def models(device):
    weights = weights_of(CONFIG)
    return (
        Transformer(device, CONFIG, upload_weights(device, weights), ADAPTERS),
        CpuModel(CONFIG, weights, ADAPTERS),
    )


def test_a_mixed_batch_of_prompts_and_decoding_rows_agrees_with_numpy(models):
    past = [(0, tokens_of(70, 1)), (1, tokens_of(3, 2)), (2, tokens_of(5, 3)), (3, tokens_of(9, 4))]
    now = [(slot, tokens_of(n, slot + 5)) for slot, n in ((1, 1), (2, 1), (0, 1), (3, 4))]
    names = {0: "all", 1: "high", 2: None, 3: "some"}
    caches = [model.new_cache(4, 96) for model in models]
    for rows in (past, now):
        batch = Batch.of(rows, [names[slot] for slot, _ in rows])
        found, expected = (m.forward(batch, cache, np.arange(len(batch.tokens))) for m, cache in zip(models, caches))
        assert_agree(found, expected)
    for name in ADAPTERS:  # each changes the logits by far more than rounding does
        without, found = (
            models[1].forward(Batch.of([past[1]], [adapter]), models[1].new_cache(2, 8), np.arange(3))
            for adapter in (None, name)
        )
        assert np.linalg.norm(found - without) > 0.1 * np.linalg.norm(without)


def test_rows_without_an_adapter_run_as_before(models, device, monkeypatch):
    """A decoding batch without adapters replays its graph, and runs no LoRA kernel."""
    model, launched = models[0], []
    launch = device.launch

    def spy(kernel, *args, **more):
        launched.append(kernel.file)
        return launch(kernel, *args, **more)

    monkeypatch.setattr(device, "launch", spy)
    prompt = tokens_of(6).tolist()
    texts = {}
    for name in (None, "all", None):
        engine = Engine(model, slots=1, max_len=32)
        request = Request(prompt, SamplingParams(temperature=0), 5, adapter=name)
        engine.submit(request)
        while engine.busy:
            engine.step()
        texts.setdefault(name, request.tokens)
        assert request.tokens == texts[name]
        assert ("lora.cu" in launched) == (name is not None)
        launched.clear()
    numpy_engine = Engine(models[1], slots=2, max_len=32)
    for name, tokens in texts.items():
        request = Request(prompt, SamplingParams(temperature=0), 5, adapter=name)
        numpy_engine.submit(request)
        while numpy_engine.busy:
            numpy_engine.step()
        assert request.tokens == tokens
