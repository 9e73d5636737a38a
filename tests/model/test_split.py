"""What each rank holds of a model, and which models can be shared out."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from llama3.checkpoint.names import HUGGING_FACE, to_weights
from llama3.checkpoint.quantised.parts import Parts
from llama3.checkpoint.quantised.schemes import scheme_of
from llama3.errors import DeviceError
from llama3.model.lora import LoraPair
from llama3.model.quantised import QuantisedMatrix
from llama3.model.split import check_split, columns, rows, split_adapter, split_config, split_weights
from llama3.model.weights import LayerWeights, Weights
from tests.quantised_files import EXAMPLES
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


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_the_entries_of_the_parts_are_those_of_a_quantised_matrix_and_each_code_is_in_one_part(example):
    """Of every scheme, as its reader gives the matrix."""
    random, scheme, made = np.random.RandomState(0), scheme_of({"quantization_config": example.fields}), 0
    for _ in range(4):
        shape = 16 * random.randint(1, 20), 64 * random.randint(1, 7)
        tensors, entries = example.make(random, *shape)
        w = scheme.read(Parts("w", shape, tensors))
        for axis, cut in enumerate((rows, columns)):
            for ranks in (2, 4):
                n, size = shape[axis] // ranks, w.group[axis]
                if n % size and size % n and size < shape[axis]:
                    with pytest.raises(ValueError, match=f"^{shape[axis]} (rows|columns) in groups of {size}$"):
                        [cut(w, rank, ranks) for rank in range(ranks)]
                    continue
                parts = [cut(w, rank, ranks) for rank in range(ranks)]
                assert np.array_equal(np.concatenate([part.rows(0, len(part)) for part in parts], axis), entries)
                assert {part.codes.nbytes for part in parts} == {w.codes.nbytes // ranks}
                made += 1
    assert made >= 6


def quantised(n_out, n_in, bits, group):
    """Of zeros: only its shape matters."""
    scale = np.ones((-(-n_out // group[0]), -(-n_in // group[1])), ml_dtypes.bfloat16)
    codes = np.zeros((n_out, n_in * bits // 8), np.uint8)
    return QuantisedMatrix((n_out, n_in), bits, codes, group, scale, 1 << bits - 1)


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize(("bits", "width"), [(8, 1024), (4, 128)])
def test_a_rank_s_part_of_quantised_layers_has_its_share_of_the_bytes(ranks, bits, width):
    layer = LayerWeights(*(quantised(1024, 1024, bits, (1, width)) for _ in range(9)))
    norms = {"attention_norm": WEIGHTS.norm, "ffn_norm": WEIGHTS.norm}
    weights = Weights(WEIGHTS.tok_embeddings, [replace(layer, **norms)], WEIGHTS.norm, WEIGHTS.output)
    sizes = [
        sum(w.nbytes for part in split.layers for w in vars(part).values())
        for split in [weights, *(split_weights(weights, rank, ranks) for rank in range(ranks))]
    ]
    assert max(sizes[1:]) <= 1.05 * sizes[0] / ranks


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


@pytest.mark.parametrize(
    ("hidden_dim", "name", "bits", "group", "ranks", "message"),
    [
        (96, "w2", 8, (1, 16), 4, "layers.1.w2 has 96 columns in groups of 16; 4 ranks would cut one in two. Use 2"),
        (96, "w2", 4, (1, 32), 2, "layers.1.w2 has 96 columns in groups of 32; 2 ranks would .* Use a single device"),
        (82, "w2", 4, (1, 82), 2, "layers.1.w2 has 82 columns in bytes of 2; 2 ranks would cut one in two. Use a"),
        (96, "w1", 8, (32, 16), 4, "layers.1.w1 has 96 rows in groups of 32; 4 ranks would cut one in two. Use a"),
    ],
)
def test_a_cut_within_a_group_or_a_byte_is_refused(hidden_dim, name, bits, group, ranks, message):
    config = tiny_config(n_heads=8, n_kv_heads=4, hidden_dim=hidden_dim)
    weights = to_weights(config, random_tensors(config), HUGGING_FACE)
    first, second = weights.layers
    changed = replace(second, **{name: quantised(*getattr(second, name).shape, bits, group)})
    with pytest.raises(DeviceError, match=f"^device cpu:0-9: {message}"):
        check_split(config, replace(weights, layers=[first, changed]), "cpu:0-9", ranks)
