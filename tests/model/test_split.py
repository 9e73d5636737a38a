"""What each rank holds of a model, and which models can be shared out."""

import numpy as np
import pytest

from llama3.checkpoint.names import HUGGING_FACE, to_weights
from llama3.errors import DeviceError
from llama3.model.lora import LoraPair
from llama3.model.quantised import QuantisedMatrix
from llama3.model.split import check_split, split_adapter, split_config, split_weights
from llama3.model.weights import Weights
from tests.tiny import random_tensors, tiny_config

CONFIG = tiny_config(n_heads=8, n_kv_heads=4)
WEIGHTS = to_weights(CONFIG, random_tensors(CONFIG), HUGGING_FACE)


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_parts_of_all_ranks_make_up_every_matrix(ranks):
    parts = [split_weights(WEIGHTS, rank, ranks) for rank in range(ranks)]
    for i, layer in enumerate(WEIGHTS.layers):
        for name, whole in vars(layer).items():
            of_ranks = [getattr(part.layers[i], name) for part in parts]
            if whole.ndim == 1:
                assert all(part is whole for part in of_ranks)
            else:
                joined = np.concatenate(of_ranks, axis=1 if name in ("wo", "w2") else 0)
                assert np.array_equal(joined, whole) and {part.nbytes for part in of_ranks} == {whole.nbytes // ranks}


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_s_matrices_have_the_shapes_of_its_config_and_are_views_of_the_file(ranks):
    config, weights = split_config(CONFIG, ranks), split_weights(WEIGHTS, ranks - 1, ranks)
    width = config.n_heads * config.head_dim
    layer = weights.layers[0]
    assert layer.wq.shape == (width, config.dim) and layer.wo.shape == (config.dim, width)
    assert layer.wk.shape == layer.wv.shape == (config.n_kv_heads * config.head_dim, config.dim)
    assert layer.w1.shape == layer.w3.shape == layer.w2.T.shape == (config.hidden_dim, config.dim)
    for name, part in vars(layer).items():
        assert np.shares_memory(part, getattr(WEIGHTS.layers[0], name))


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", ["wq", "w2"])
def test_the_parts_of_an_adapter_change_the_parts_of_the_matrix(ranks, name):
    random, whole = np.random.RandomState(0), getattr(WEIGHTS.layers[0], name)
    pair = LoraPair(random.randn(3, whole.shape[1]).astype("f4"), random.randn(len(whole), 3).astype("f4"))
    parts = [split_adapter([{name: pair}], rank, ranks)[0][name] for rank in range(ranks)]
    joined = np.concatenate([part.b @ part.a for part in parts], axis=1 if name == "w2" else 0)
    assert np.allclose(joined, pair.b @ pair.a, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "ranks", "multiple", "message"),
    [
        ({"n_kv_heads": 1}, 2, 1, "n_kv_heads is 1; 2 ranks need a multiple of 2. Use a single device"),
        ({"n_heads": 6, "n_kv_heads": 6}, 4, 1, "n_heads is 6; 4 ranks need a multiple of 4. Use 2 ranks"),
        ({"hidden_dim": 81}, 2, 1, "hidden_dim is 81; 2 ranks need a multiple of 2. Use a single device"),
        ({"hidden_dim": 192}, 2, 64, "hidden_dim is 192; 2 ranks need a multiple of 128. Use a single device"),
        ({"n_heads": 8, "n_kv_heads": 8, "hidden_dim": 256}, 8, 64, "hidden_dim is 256; .* of 512. Use 4 ranks"),
    ],
)
def test_a_model_that_cannot_be_shared_out_is_refused_with_the_number(changes, ranks, multiple, message):
    config = tiny_config(**changes)
    weights = to_weights(config, random_tensors(config), HUGGING_FACE)
    with pytest.raises(DeviceError, match=f"^device cpu:0-9: {message}$"):
        check_split(config, weights, "cpu:0-9", ranks, multiple)


def test_quantised_weights_are_refused():
    w, layer = WEIGHTS.layers[0].w1, WEIGHTS.layers[0]
    codes = QuantisedMatrix(w.shape, 8, w.astype(np.int8), (1, w.shape[1]), np.ones((len(w), 1), np.float32))
    changed = Weights(
        WEIGHTS.tok_embeddings, [type(layer)(**(vars(layer) | {"w1": codes}))], WEIGHTS.norm, WEIGHTS.output
    )
    with pytest.raises(DeviceError, match=r"^device cpu:0-1: quantised weights are not shared out among ranks; use a"):
        check_split(CONFIG, changed, "cpu:0-1", 2)
