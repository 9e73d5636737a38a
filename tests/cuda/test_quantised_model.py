"""A tiny Llama with quantised weights on a device agrees with the NumPy model of the same weights."""

import functools
from dataclasses import replace

import numpy as np
import pytest

from llama3.config import ModelConfig
from llama3.cpu_model import CpuModel
from llama3.cuda.transformer import Transformer
from llama3.cuda.weights import QuantisedArray, described, upload_weights, uploaded_bytes
from llama3.model.batch import Batch
from llama3.model.quantised import QuantisedMatrix
from tests.cuda.kernel_checks import bfloat16
from tests.cuda.quantised_matrices import KINDS, rounded
from tests.cuda.test_lora import lora_pair
from tests.cuda.test_transformer import LIMIT, assert_agree, decode, forward, greedy, tokens_of, weights_of

CONFIG = ModelConfig(128, 2, 2, 1, 64, 384, 515, max_seq_len=320)
ROUNDED = 2e-2  # with more than 64 rows, the weights are rounded to bfloat16, too
MATRICES = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")


@functools.cache
def weights(kind):
    """`weights_of` with the layers' matrices, and the output matrix, of this kind."""
    plain = weights_of(CONFIG)
    layers = [
        replace(layer, **{name: rounded(kind, getattr(layer, name)) for name in MATRICES}) for layer in plain.layers
    ]
    return replace(plain, layers=layers, output=rounded(kind, plain.output))


def models(device, kind, adapters=None):
    return (
        Transformer(device, CONFIG, upload_weights(device, weights(kind)), adapters),
        CpuModel(CONFIG, weights(kind), adapters),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_and_decoding_agree_with_numpy(device, kind):
    """A prompt of more rows than our own products take, one of a few, and steps of graphs for one and for two rows."""
    both = models(device, kind)
    caches = [model.new_cache(2, 90) for model in both]
    found, expected = (
        forward(model, cache, (0, tokens_of(66, 1)), (1, tokens_of(5, 2))) for model, cache in zip(both, caches)
    )
    assert_agree(found, expected, ROUNDED)
    found, expected = [], []
    for slots in ([0, 1], [1]):
        rows = [(slot, 7 + slot) for slot in slots]
        tokens, logits = decode(both[0], caches[0], rows, greedy(len(slots)), 2)
        for step in range(2):
            found.append(logits[step])
            expected.append(forward(both[1], caches[1], *((slot, [token]) for slot, token in rows)))
            rows = list(zip(slots, tokens[step].tolist()))
    assert_agree(np.concatenate(found), np.concatenate(expected))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_add_to_products_with_codes(device, kind):
    shapes = {name: getattr(weights(kind).layers[0], name).shape for name in MATRICES}
    adapter = [{name: lora_pair(20 * i + len(name), 4, *shape, 0.5) for name, shape in shapes.items()} for i in (1, 2)]
    both = models(device, kind, {"a": adapter})
    for n in (1, 9, 70):
        batch = Batch.of([(0, tokens_of(n, n))], ["a"])
        found, expected = (model.forward(batch, model.new_cache(1, 80), np.arange(n)) for model in both)
        assert_agree(found, expected, ROUNDED if n == 70 else LIMIT)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_has_the_values_of_the_numpy_trace(device, kind):
    for n in (1, 40):
        traces = []
        for model in models(device, kind):
            traces.append({})
            model.forward(Batch.of([(0, tokens_of(n))]), model.new_cache(1, 80), np.arange(n), traces[-1].__setitem__)
        for name, value in traces[1].items():
            assert np.linalg.norm(traces[0][name] - value) <= 1e-2 * np.linalg.norm(value), name


def test_codes_that_the_kernels_take_stay_codes_and_all_others_become_bfloat16(device):
    """Also if the matrices of one product are of different kinds."""
    plain, eight = weights("Int4"), weights("Int8")
    layer = plain.layers[0]
    blocks = QuantisedMatrix((128, 128), 8, eight.layers[0].wo.codes, (32, 32), np.ones((4, 4), np.float32))
    unsigned = replace(eight.layers[0].w2, codes=eight.layers[0].w2.codes.view(np.uint8) ^ np.uint8(128), zero=128)
    mixed = replace(layer, wo=blocks, w1=eight.layers[0].w1, w2=unsigned)
    changed = replace(plain, layers=[mixed, plain.layers[1]])
    found = upload_weights(device, changed).layers[0]
    assert found.wqkv.kind == "Int4" and found.wqkv.shape == (256, 128)
    assert not isinstance(found.w13, QuantisedArray)
    expected = np.concatenate([mixed.w1.rows(0, 384), mixed.w3.rows(0, 384)]).astype(bfloat16)
    assert np.array_equal(device.download(found.w13), expected)
    assert found.w2.kind == "Int8"
    signed = upload_weights(device, replace(changed, layers=[replace(mixed, w2=eight.layers[0].w2)])).layers[0].w2
    assert np.array_equal(device.download(found.w2.rows), device.download(signed.rows))
    stay, become = described(changed).split("; ")
    assert stay == "quantised matrices that stay codes: 11 in int4, 1 in int8"
    assert become == "quantised matrices that become bfloat16: 3"  # wo, and w1 beside w3
    assert described(weights_of(CONFIG)) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_allocated_is_what_was_calculated(device, monkeypatch, kind):
    sizes, alloc = [], device.alloc
    monkeypatch.setattr(device, "alloc", lambda *args: sizes.append(alloc(*args)) or sizes[-1])
    monkeypatch.setattr(device, "upload", lambda array, into=None: alloc(array.shape, array.dtype))
    monkeypatch.setattr(device, "copy", lambda source, into: None)
    monkeypatch.setattr(device, "launch", lambda *args, **more: None)
    upload_weights(device, weights(kind))
    assert sum(array.nbytes for array in sizes) == uploaded_bytes(weights(kind))
