"""What else works on weights works on quantised ones: LoRA, traces, references, hashes, prefixes, inspect, ablation."""

from pathlib import Path

import numpy as np
import pytest

from llama3 import Llama
from llama3.cli.loading import read_ahead, read_by_each_token
from llama3.inspect import inspect
from llama3.parity import compare_model
from llama3.parity.own_reference import own_reference
from llama3.parity.weights_hash import weights_hash
from tests.quantised_files import BY_NAME, write
from tests.tiny import random_adapter, write_adapter, write_hf

TOKENS = list(range(5, 30))


@pytest.fixture(scope="module", params=["int4 by group", "int8 by row", "float8 by block", "NF4 twice"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Llama, Llama]:
    """The same model quantised and plain, both with an adapter."""
    folder, example = tmp_path_factory.mktemp("model"), BY_NAME[request.param]
    quantised, tensors = write(folder / "quantised", example, output=True)
    plain = write_hf(folder / "plain", example.config, {name: a.astype("f4") for name, a in tensors.items()})
    adapter = write_adapter(folder / "adapter", random_adapter(example.config))
    a, b = (Llama.load(model, lora={"a": adapter}) for model in (quantised, plain))
    return a, b


def test_an_adapter_is_added(pair: tuple[Llama, Llama]):
    a, b = (llama.generate(TOKENS, lora="a", temperature=0, max_tokens=8, logprobs=1) for llama in pair)
    assert a.tokens == b.tokens and a.tokens != pair[0].generate(TOKENS, temperature=0, max_tokens=8).tokens


def test_references_traces_and_hashes_are_those_of_the_plain_model(pair: tuple[Llama, Llama]):
    a, b = (llama.checkpoint for llama in pair)
    assert weights_hash(a.weights) == weights_hash(b.weights)
    for dtype in ("float64", "float32", "bfloat16"):
        x, y = (own_reference(checkpoint, TOKENS, dtype, "layers.*.q") for checkpoint in (a, b))
        assert np.allclose(x.logits, y.logits, rtol=1e-4, atol=1e-4), dtype
        assert compare_model(pair[0].model, y, rtol=0.1 if dtype == "bfloat16" else 1e-5).ok
    trace = [llama.trace(TOKENS, "layers.*.gate") for llama in pair]
    assert all(np.allclose(trace[0][name], trace[1][name], rtol=1e-4, atol=1e-4) for name in trace[0])


def test_a_prefix_fits_this_model_alone(pair: tuple[Llama, Llama], tmp_path: Path):
    pair[0].save_prefix(tmp_path / "prefix", TOKENS)
    assert pair[0].load_prefix(tmp_path / "prefix") == TOKENS
    with pytest.raises(Exception, match="the weights differ"):
        pair[1].load_prefix(tmp_path / "prefix")


def test_inspect_and_what_it_switches_off(pair: tuple[Llama, Llama]):
    a, b = (inspect(llama, TOKENS, max_tokens=3, temperature=0, without=[(0, 1), (1, "ffn")]) for llama in pair)
    assert a.answer.tokens == b.answer.tokens and np.allclose(a.lens.of_next, b.lens.of_next, atol=1e-5, equal_nan=True)
    assert a.ablations[0].tokens == b.ablations[0].tokens


def test_every_array_is_read_ahead(pair: tuple[Llama, Llama]):
    arrays = read_by_each_token(pair[0].checkpoint.weights)
    read_ahead(arrays, quiet=True)
    w = pair[0].checkpoint.weights
    assert sum(a.nbytes for a in arrays) == w.norm.nbytes + w.output.nbytes + sum(
        a.nbytes for layer in w.layers for a in vars(layer).values()
    )
