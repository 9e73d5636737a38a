"""Ranks in NumPy against one process: prompts, decoding, shortened slots, LoRA. Planted faults are noticed."""

from dataclasses import replace

import numpy as np
import pytest

from llama3.checkpoint import load_adapter, load_folder
from llama3.checkpoint.names import HUGGING_FACE, to_weights
from llama3.cpu_model import CpuModel
from llama3.model.batch import Batch
from llama3.model.linear import linear
from llama3.model.linear_choice import LinearChoice
from llama3.model.split import columns
from llama3.model.summed import SummedMatrix
from tests.quantised_files import BY_NAME, write
from tests.tensor_parallel.in_threads import groups_of, in_threads, models_of, relative
from tests.tiny import MODULES, random_adapter, random_tensors, tiny_config, write_adapter

CONFIG = tiny_config(dim=64, n_heads=8, n_kv_heads=4, hidden_dim=192)
QUANTISED = replace(CONFIG, hidden_dim=256)  # a quarter of it is a group of each scheme
WEIGHTS = to_weights(CONFIG, random_tensors(CONFIG, dtype="bf16"), HUGGING_FACE)
random = np.random.RandomState(0)
# (slot, tokens, adapter) of each sequence of a step; a slot is cut to `length` before it, if one is given
STEPS = [
    ([(0, random.randint(0, 96, 50), "all"), (1, random.randint(0, 96, 9), None)], {}),
    *[([(0, [i], "all"), (1, [2 * i], None)], {}) for i in range(5)],
    ([(1, random.randint(0, 96, 20), "some"), (0, [7], None)], {1: 4}),
    ([(0, [3], None)], {}),
]


def adapters_of(config, folder):
    kinds = {"all": random_adapter(config, 1), "some": random_adapter(config, 2, rank=1, modules=MODULES[::3])}
    return {
        name: load_adapter(write_adapter(folder / name, kind, lora_alpha=1), config) for name, kind in kinds.items()
    }


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    return adapters_of(CONFIG, tmp_path_factory.mktemp("adapters"))


def run(model: CpuModel, begin_step=lambda: None) -> list[np.ndarray]:
    """The logits of every row of all steps."""
    cache, found = model.new_cache(2, 128), []
    for sequences, lengths in STEPS:
        begin_step()
        for slot, length in lengths.items():
            cache.truncate(slot, length)
        names = [name if model.adapters else None for _, _, name in sequences]
        batch = Batch.of([(slot, tokens) for slot, tokens, _ in sequences], names)
        found.append(model.forward(batch, cache, np.arange(len(batch.tokens))))
    return found


def on_ranks(
    ranks: int, adapters, change=lambda rank, model: model, weights=WEIGHTS, config=CONFIG, **more
) -> list[list[np.ndarray]]:
    groups = groups_of(ranks)
    models = models_of(config, weights, adapters, groups, **more)
    models = [change(rank, model) for rank, model in enumerate(models)]

    def work(rank, group):
        def count():
            group.step += 1

        return run(models[rank], count)

    return in_threads(work, groups)


def assert_agree(found: list[list[np.ndarray]], expected: list[np.ndarray]) -> None:
    """found: of all ranks."""
    first, *others = found
    for mine, right in zip(first, expected):
        assert relative(mine, right) <= 1e-6 and (mine.argmax(1) == right.argmax(1)).all()
    for other in others:
        assert all(np.array_equal(a, b) for a, b in zip(first, other))


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_compute_what_one_process_does_and_have_the_same_bits(ranks, lora, adapters):
    adapters = adapters if lora else {}
    assert_agree(on_ranks(ranks, adapters), run(CpuModel(CONFIG, WEIGHTS, adapters)))


SCHEMES = ("int4 with zeros", "int8 by row", "float8 by matrix", "float8 by block", "NF4")


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """The weights of each scheme, by its name."""
    folders = [write(tmp_path_factory.mktemp("model"), BY_NAME[name], **vars(QUANTISED))[0] for name in SCHEMES]
    return {name: load_folder(folder).weights for name, folder in zip(SCHEMES, folders)}


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_ranks_of_quantised_weights_and_adapters_compute_what_one_process_does(scheme, ranks, quantised, tmp_path):
    weights, adapters = quantised[scheme], adapters_of(QUANTISED, tmp_path)
    found = on_ranks(ranks, adapters, weights=weights, config=QUANTISED)
    assert_agree(found, run(CpuModel(QUANTISED, weights, adapters)))


def test_the_scales_of_another_rank_are_noticed(quantised):
    def of_another(rank, model):
        wo, whole = model.weights.layers[0].wo, weights.layers[0].wo
        return with_layer_0(model, wo=replace(wo, w=replace(wo.w, scale=columns(whole, 1 - rank, 2).scale)))

    weights = quantised["int4 with zeros"]
    expected = run(CpuModel(QUANTISED, weights))
    assert relative(on_ranks(2, {}, of_another, weights, QUANTISED)[0][0], expected[0]) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["int4 with zeros", "int8 by row"])
def test_numba_multiplies_by_the_parts_too(scheme, tmp_path):
    """Of 4 bits a kernel takes rows of 128 columns, or of a multiple."""
    pytest.importorskip("numba", reason="numba is not installed")
    config = replace(QUANTISED, dim=128, n_heads=16)
    weights = load_folder(write(tmp_path, BY_NAME[scheme], **vars(config))[0]).weights
    choice = LinearChoice("numba", "the test says so")

    def check(rank, model):
        layer = model.weights.layers[0]
        assert {type(w).__name__ for w in (layer.wq, layer.wo.w, layer.w1, layer.w2.w)} == {"NumbaQuantisedMatrix"}
        return model

    found = on_ranks(2, {}, check, weights, config, linear=choice)
    assert_agree(found, run(CpuModel(config, weights, {}, choice)))


def with_layer_0(model, **changes):
    model.weights = replace(
        model.weights, layers=[replace(model.weights.layers[0], **changes), *model.weights.layers[1:]]
    )
    return model


def columns_of_another_rank(rank, model):
    wo = model.weights.layers[0].wo
    return with_layer_0(model, wo=SummedMatrix(columns(WEIGHTS.layers[0].wo, 1 - rank, 2), wo.group))


def a_sum_left_out(rank, model):
    class Alone:
        def product(self, x):
            return linear(x, w2.w)

    w2 = model.weights.layers[0].w2
    return with_layer_0(model, w2=Alone())


def residual_added_in_every_rank(rank, model):
    """As if the residual stream were added before the sum, and not after it."""

    class Twice:
        def product(self, x):
            return 2 * wo.product(x)

    wo = model.weights.layers[0].wo
    return with_layer_0(model, wo=Twice())


@pytest.mark.parametrize("fault", [columns_of_another_rank, a_sum_left_out, residual_added_in_every_rank])
def test_a_planted_fault_is_noticed(fault):
    expected = run(CpuModel(CONFIG, WEIGHTS))
    found = on_ranks(2, {}, fault)[0]
    assert relative(found[0], expected[0]) > 1e-2


def test_an_adapter_that_is_added_after_the_sum_is_noticed(adapters, monkeypatch):
    from llama3.model import lora

    expected = run(CpuModel(CONFIG, WEIGHTS, adapters))
    monkeypatch.setattr(lora, "adapted", lora.LoraMatrix)
    assert relative(on_ranks(2, adapters)[0][0], expected[0]) > 1e-2


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_holds_its_share_of_the_layers_and_the_embedding(ranks):
    def size(layers):
        return sum(getattr(w, "w", w).nbytes for layer in layers for w in vars(layer).values())

    for model in models_of(CONFIG, WEIGHTS, {}, groups_of(ranks)):
        norms = 2 * CONFIG.n_layers * WEIGHTS.norm.nbytes
        assert size(model.weights.layers) - norms <= 1.0001 * (size(WEIGHTS.layers) - norms) / ranks
        assert model.weights.output is WEIGHTS.output
