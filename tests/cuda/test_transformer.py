"""A tiny Llama on a device, launch code and kernels together, agrees with the NumPy model with the same weights."""

import gc
import weakref
from functools import cache as once

import numpy as np
import pytest

from llama3.checkpoint.names import HUGGING_FACE, to_weights
from llama3.config import ModelConfig, RopeScaling
from llama3.cpu_model import CpuModel
from llama3.cuda.transformer import Transformer
from llama3.cuda.weights import upload_weights
from llama3.engine import Engine, Request
from llama3.errors import DeviceError
from llama3.model.batch import Batch
from llama3.model.weights import Weights
from llama3.philox import uniform
from llama3.sampler import Sample, SequenceSampler
from llama3.sampling_params import SamplingParams
from tests.cuda.kernel_checks import bfloat16
from tests.tiny import random_tensors

LIMIT = 1e-2  # relative error of a row: bfloat16 activations, 2 layers
CONFIG = ModelConfig(128, 2, 4, 1, 64, 192, 515, max_seq_len=320)
CONFIGS = {
    "grouped queries": CONFIG,
    "tied, wide heads": ModelConfig(192, 2, 4, 2, 128, 64, 131, max_seq_len=320, tied_embeddings=True),
    "scaled rope": ModelConfig(
        64, 2, 2, 2, 64, 320, 99, max_seq_len=320, rope_scaling=RopeScaling(original_max_seq_len=64)
    ),
}


@once
def weights_of(config: ModelConfig, dtype: str = "bf16") -> Weights:
    """The embeddings have size 1. So the residual stream outweighs what a layer adds, as in a trained model."""
    tensors = random_tensors(config, dtype=dtype)
    table = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = (table.astype(np.float32) * np.sqrt(config.dim)).astype(table.dtype)
    return to_weights(config, tensors, HUGGING_FACE)


def on_device(device, config=CONFIG, dtype="bf16"):
    return Transformer(device, config, upload_weights(device, weights_of(config, dtype)))


def in_numpy(config=CONFIG):
    return CpuModel(config, weights_of(config))


def tokens_of(n, seed=0, config=CONFIG):
    return np.random.RandomState(seed).randint(0, config.vocab_size, n).astype(np.int32)


def assert_agree(found, expected, limit=LIMIT):
    """Compares each row. The most likely token must be the same where it leads by more than twice the error."""
    assert found.shape == expected.shape and found.dtype == np.float32
    error = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert error.max() <= limit, error
    worst = np.abs(found - expected).max(axis=-1)
    second, first = np.sort(expected, axis=-1)[:, -2:].T
    clear = first - second > 2 * worst
    assert np.array_equal(found.argmax(axis=-1)[clear], expected.argmax(axis=-1)[clear])
    assert clear.mean() > 0.5, "too few rows have a clear first token: the comparison proves nothing"


def forward(model, cache, *rows):
    batch = Batch.of(rows)
    return model.forward(batch, cache, np.arange(len(batch.tokens)))


def test_a_prompt(device):
    for config in CONFIGS.values():
        tokens = tokens_of(70, config=config)
        models = on_device(device, config), in_numpy(config)
        found, expected = (forward(model, model.new_cache(1, 80), (0, tokens)) for model in models)
        assert_agree(found, expected)


def test_the_number_of_rows_at_a_time_does_not_matter(device):
    """More than 32 rows are multiplied by cuBLAS, up to 32 by linear_few.cu, and a single row by linear.cu."""
    model, tokens = on_device(device), tokens_of(100)
    whole = forward(model, model.new_cache(1, 100), (0, tokens))
    assert_agree(whole, forward(in_numpy(), in_numpy().new_cache(1, 100), (0, tokens)))
    for sizes in ((64, 36), (1, 2, 61, 1, 1, 34), (99, 1), (5, 3, 9, 17, 33, 33)):
        cache, ends = model.new_cache(1, 100), np.cumsum(sizes)
        pieces = [forward(model, cache, (0, tokens[end - n : end])) for end, n in zip(ends, sizes)]
        assert_agree(np.concatenate(pieces), whole)


def test_a_ragged_batch_of_decoding_rows_and_prompts(device):
    model, numpy_model = on_device(device), in_numpy()
    past = [(0, tokens_of(70, 1)), (2, tokens_of(3, 2)), (3, tokens_of(65, 3))]
    now = [
        (2, tokens_of(1, 4)),
        (0, tokens_of(1, 5)),
        (1, tokens_of(67, 6)),
        (3, tokens_of(5, 7)),
        (4, tokens_of(1, 8)),
    ]
    caches = model.new_cache(5, 160), numpy_model.new_cache(5, 160)
    for rows in (past, now):
        found, expected = (forward(m, cache, *rows) for m, cache in zip((model, numpy_model), caches))
        assert_agree(found, expected)
    assert caches[0].lengths == caches[1].lengths == [71, 67, 4, 70, 1]


def test_only_the_requested_logits_are_computed(device):
    model, batch = on_device(device), Batch.of([(0, tokens_of(9)), (1, tokens_of(4, 1))])
    whole, some, none = (
        model.forward(batch, model.new_cache(2, 16), np.array(rows, int)) for rows in (range(13), [8, 12, 0], [])
    )
    # Another number of rows may select another kernel, which sums in another order.
    assert np.array_equal(whole[[8, 12, 0]], some) or np.abs(whole[[8, 12, 0]] - some).max() < 1e-4
    assert none.shape == (0, CONFIG.vocab_size)


def test_the_trace_has_the_names_and_the_values_of_the_numpy_trace(device):
    for rows in ([(0, tokens_of(5))], [(0, tokens_of(1))], [(1, tokens_of(1)), (0, tokens_of(70, 1))]):
        traces, batch = [], Batch.of(rows)
        for model in (on_device(device), in_numpy()):
            traces.append({})
            cache = model.new_cache(2, 80)
            model.forward(Batch.of([(1, tokens_of(3, 2))]), cache, np.arange(0))  # slot 1 begins at position 3
            model.forward(batch, cache, np.arange(len(batch.tokens)), traces[-1].__setitem__)
        assert list(traces[0]) == list(traces[1])
        for name, value in traces[1].items():
            found = traces[0][name]
            assert found.shape == value.shape and found.dtype == np.float32, name
            assert np.linalg.norm(found - value) <= LIMIT * np.linalg.norm(value), name


def test_a_trace_changes_no_logits(device):
    model, tokens = on_device(device), tokens_of(9)
    for n in (1, 9):
        batch = Batch.of([(0, tokens[:n])])
        plain = model.forward(batch, model.new_cache(1, 9), np.arange(n))
        assert np.array_equal(plain, model.forward(batch, model.new_cache(1, 9), np.arange(n), lambda *at: None))


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_weights_of_other_dtypes_become_bfloat16(device, dtype):
    weights = weights_of(CONFIG, dtype)
    model = on_device(device, CONFIG, dtype)
    layer, device_layer = weights.layers[1], model.weights.layers[1]
    found = device.download(device_layer.wqkv), device.download(device_layer.w13)
    assert np.array_equal(found[0], np.concatenate([layer.wq, layer.wk, layer.wv]).astype(bfloat16))
    assert np.array_equal(found[1], np.concatenate([layer.w1, layer.w3]).astype(bfloat16))


def test_the_upload_reports_every_parameter_once(device):
    reported = []
    upload_weights(device, weights_of(CONFIGS["tied, wide heads"]), reported.append)
    assert reported == sorted(reported)
    assert reported[-1] == sum(a.size for a in random_tensors(CONFIGS["tied, wide heads"]).values())


# ---- decoding ----


def greedy(n):
    return [SequenceSampler(SamplingParams(temperature=0), [0], CONFIG.vocab_size) for _ in range(n)]


def decode(model, cache, rows, samplers, steps, before_step=lambda decoding: None):
    """Decode `steps` tokens from rows [(slot, token)] -> tokens (steps, n), logits (steps, n, vocab_size)."""
    tokens, logits = [], []
    for _ in range(steps):
        if cache in model._decodings:
            before_step(model._decodings[cache])
        samples = model.step(Batch.of([(slot, [token]) for slot, token in rows]), cache, samplers).samples()
        assert all(isinstance(sample, Sample) for sample in samples), samples
        logits.append(model.device.download(model._decodings[cache]._logits[: len(rows)]))
        rows = [(slot, sample.token) for (slot, _), sample in zip(rows, samples)]
        tokens.append([token for _, token in rows])
        for sampler, (_, token) in zip(samplers, rows):
            sampler.accept(token)
    return np.array(tokens), np.stack(logits)


def test_token_by_token_in_graphs_it_agrees_with_numpy(device):
    """Rows join and leave, so the graphs for 1, 2 and 4 rows are all used, in turn."""
    model, numpy_model = on_device(device), in_numpy()
    caches = model.new_cache(4, 90), numpy_model.new_cache(4, 90)
    prompts = [(slot, tokens_of(n, slot)) for slot, n in enumerate((70, 1, 5, 64))]
    for m, cache in zip((model, numpy_model), caches):
        forward(m, cache, *prompts)
    found, expected = [], []
    for slots in ([0], [0, 1], [0, 1, 2], [3, 1, 2, 0], [1, 3], [2]):
        rows = [(slot, 7 + slot) for slot in slots]
        tokens, logits = decode(model, caches[0], rows, greedy(len(slots)), 3)
        for step in range(3):
            found.append(logits[step])
            expected.append(forward(numpy_model, caches[1], *((slot, [token]) for slot, token in rows)))
            assert np.array_equal(tokens[step], logits[step].argmax(axis=-1))
            rows = list(zip(slots, tokens[step].tolist()))
    assert_agree(np.concatenate(found), np.concatenate(expected))
    assert caches[0].lengths == caches[1].lengths


@pytest.mark.parametrize(("memory_rate", "n", "graph"), [(3.35e12, 40, 64), (4.8e12, 20, 32)])
def test_graphs_of_many_rows_multiply_by_cublas(device, monkeypatch, memory_rate, n, graph):
    """40 rows, or 20 with an H200's memory, decode in a graph for 64 or 32, whose products are all cuBLAS's; the other
    rows are padding.
    """
    monkeypatch.setattr(device, "memory_rate", memory_rate)
    model, numpy_model, gemm, recorded = on_device(device), in_numpy(), device.gemm, []

    def watched(*args, **options):
        recorded.extend([args] if device.capturing else [])
        gemm(*args, **options)

    monkeypatch.setattr(device, "gemm", watched)
    caches = model.new_cache(n, 16), numpy_model.new_cache(n, 16)
    rows = [(slot, 7 + slot) for slot in range(n)]
    tokens, logits = decode(model, caches[0], rows, greedy(n), 2)
    assert [len(args[0]) for args in recorded] == [graph] * (4 * CONFIG.n_layers + 1)
    expected = []
    for step in range(2):
        expected.append(forward(numpy_model, caches[1], *((slot, [token]) for slot, token in rows)))
        rows = list(zip(range(n), tokens[step].tolist()))
    assert_agree(np.concatenate(logits), np.concatenate(expected))


PARAMETERS = [
    SamplingParams(temperature=0),
    SamplingParams(seed=1, repetition_penalty=1.3, presence_penalty=0.2, logprobs=3),
    SamplingParams(seed=2, temperature=1.5, top_k=20, top_p=0.9),
]


def test_a_graph_does_what_its_launches_do_one_by_one(device):
    model = on_device(device)
    found = []
    for before_step in (lambda decoding: None, lambda decoding: decoding.graphs.clear()):
        cache = model.new_cache(4, 90)
        forward(model, cache, *((slot, tokens_of(20 + slot, slot)) for slot in range(3)))
        samplers = [SequenceSampler(params, [1, 2, 3], CONFIG.vocab_size) for params in PARAMETERS]
        tokens, logits = decode(model, cache, [(slot, 5) for slot in range(3)], samplers, 6, before_step)
        found.append((tokens.tobytes(), logits.tobytes(), device.download(cache.k).tobytes()[:100]))
    assert found[0] == found[1]


def test_within_a_bucket_a_sequence_does_not_see_its_neighbours(device):
    model = on_device(device)
    found = []
    for seed, row in ((1, 0), (2, 1), (3, 2)):
        cache = model.new_cache(3, 90)
        for slot in range(3):
            forward(model, cache, (slot, tokens_of(66, 0 if slot == row else seed)[: 66 if slot == row else 9 + slot]))
        _, logits = decode(model, cache, [(slot, 5 if slot == row else 8) for slot in range(3)], greedy(3), 2)
        found.append(logits[:, row].tobytes())
    assert found[0] == found[1] == found[2]


def test_a_truncated_cache_gives_the_same_bits_again(device):
    model, cache = on_device(device), None
    cache = model.new_cache(1, 90)
    forward(model, cache, (0, tokens_of(20)))
    found = []
    for _ in range(2):
        found.append(decode(model, cache, [(0, 5)], greedy(1), 3)[1].tobytes())
        cache.truncate(0, 20)
    assert found[0] == found[1]


def test_a_copied_prefix_gives_the_same_bits(device):
    model = on_device(device)
    cache = model.new_cache(2, 90)
    forward(model, cache, (0, tokens_of(20)))
    cache.copy_prefix(0, 1, 15)
    again = forward(model, cache, (1, tokens_of(20)[15:]))
    cache.truncate(0, 15)
    assert np.array_equal(again, forward(model, cache, (0, tokens_of(20)[15:])))


def test_in_every_order_of_threads_and_blocks(device, in_every_order):
    def run():
        model = on_device(device)
        cache = model.new_cache(2, 70)
        logits = forward(model, cache, (0, tokens_of(66)), (1, tokens_of(3)))
        return logits, *decode(model, cache, [(0, 1), (1, 2)], greedy(2), 2)

    in_every_order(run)


def test_dropping_a_cache_frees_its_graphs_at_once(device):
    """Reference counting frees them: there is no reference cycle, which only the garbage collector could free."""
    model = on_device(device)
    cache = model.new_cache(2, 40)
    decode(model, cache, [(0, 1), (1, 2)], greedy(2), 3)
    decoding = model._decodings[cache]
    alive = [weakref.ref(x) for x in (cache, decoding, decoding.graphs[2, True], decoding._logits)]
    del decoding
    gc.disable()
    try:
        del cache
        assert [ref() for ref in alive] == [None] * 4 and not model._decodings
        other = model.new_cache(1, 40)
        decode(model, other, [(0, 1)], greedy(1), 1)
        model_ref, decoding_ref = weakref.ref(model), weakref.ref(model._decodings[other])
        del model  # while a cache is still in use
        assert model_ref() is None and decoding_ref() is None
    finally:
        gc.enable()


# ---- under the engine ----


def engine_tokens(model, prompts, params, slots=3):
    engine = Engine(model, slots, 120)
    requests = [Request(prompt.tolist(), p, 6) for prompt, p in zip(prompts, params)]
    for request in requests:
        engine.submit(request)
    while engine.busy:
        engine.step()
    assert [request.finish_reason for request in requests] == ["length"] * len(requests), requests[0].error
    return [request.tokens for request in requests], requests


def assert_same_text(found, other, prompt, params):
    """Unless the first difference is a draw too close to the border of two tokens for the precision of bfloat16."""
    if found == other:
        return
    same = next(i for i, (a, b) in enumerate(zip(found, other)) if a != b)
    model, past = in_numpy(), np.array([*prompt, *found[:same]], np.int32)
    logits = forward(model, model.new_cache(1, len(past)), (0, past))[-1].astype(np.float64)
    for token in found[:same]:
        logits[token] -= params.frequency_penalty
    weights = np.exp((logits - logits.max()) / params.temperature)
    borders = np.concatenate([[0], weights.cumsum() / weights.sum()])
    near = borders[found[same]], borders[found[same] + 1], borders[other[same]], borders[other[same] + 1]
    u = uniform(params.seed, same)
    assert min(abs(u - border) for border in near) <= 0.02, (found, other, u, near)


def test_the_engine_gets_the_same_tokens_alone_and_together_and_from_numpy(device):
    model = on_device(device)
    prompts = [tokens_of(n, n) for n in (5, 70, 1, 33, 66)]
    params = [SamplingParams(seed=i, temperature=0.7, frequency_penalty=0.3) for i in range(5)]
    together, _ = engine_tokens(model, prompts, params)
    alone = [engine_tokens(model, [prompt], [p], slots=1)[0][0] for prompt, p in zip(prompts, params)]
    expected, _ = engine_tokens(in_numpy(), prompts, params)
    for others in (alone, expected):
        for found, other, prompt, p in zip(together, others, prompts, params):
            assert_same_text(found, other, prompt, p)


def failing_at(alloc, which):
    """An `alloc` that fails at call number `which`, counted from 0, and only there."""
    calls = iter(range(10**6))

    def failing(shape, dtype):
        if next(calls) == which:
            raise DeviceError("out of GPU memory")
        return alloc(shape, dtype)

    return failing, calls


def test_an_allocation_that_fails_ends_its_request_and_frees_its_slot(device, monkeypatch):
    """Whichever allocation fails, the next request gets the slot and the same tokens as in a run without failures."""
    one_layer = ModelConfig(**{**vars(CONFIG), "n_layers": 1})
    model, params = on_device(device, one_layer), SamplingParams(seed=0)
    engine = Engine(model, 1, 120)

    def run(n):
        engine.cache.truncate(0, 0)
        request = Request(tokens_of(n).tolist(), params, 2)
        engine.submit(request)
        while engine.busy:
            engine.step()
        return request

    which, failures, expected = 0, 0, engine_tokens(model, [tokens_of(5)], [params])[0][0][:2]
    while True:
        model._decodings.clear()  # so that its buffers and graphs are allocated again, too
        model._activations = model._activations.first(1)
        failing, calls = failing_at(device.alloc, which)
        with monkeypatch.context() as patch:
            patch.setattr(device, "alloc", failing)
            request = run(70)
        if next(calls) <= which:  # the run made at most `which` allocations, so none has failed
            assert request.finish_reason == "length"
            break
        assert request.finish_reason == "error" and "out of GPU memory" in str(request.error)
        later = run(5)
        assert later.finish_reason == "length" and later.tokens == expected
        which, failures = which + 1, failures + 1
    assert failures > 20, failures


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_step_that_ctrl_c_interrupts_is_resumed(device, monkeypatch, steps):
    """At any point of the step: the device may or may not have drawn tokens and counted them, of one step or of two."""
    model, prompt = on_device(device), tokens_of(9).tolist()
    params = SamplingParams(seed=1, temperature=1.0, frequency_penalty=1.5, top_k=50)
    expected = engine_tokens(model, [np.array(prompt)], [params], slots=1)[0][0]
    engine, request = Engine(model, 1, 120), Request(prompt, params, 6)
    engine.submit(request)
    for _ in range(steps):
        engine.step()
    copies = model._decodings[engine.cache].sampler._copies

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    for name, targets in (("wait", copies), ("replay", [device]), ("start", copies), ("upload", [device])):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            for target in targets:
                patch.setattr(target, name, interrupt)
            engine.step()
            engine.step()
    while engine.busy:
        engine.step()
    assert request.tokens == expected
