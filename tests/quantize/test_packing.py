"""Packed codes: each is where compressed-tensors looks for it, and `QuantisedMatrix` reads them."""

import numpy as np
import pytest

from llama3.model.quantised import QuantisedMatrix
from llama3.quantize.packing import group_width, pack, packed_bytes, quantization_config
from tests.tiny import tiny_config


def random_codes(bits: int, n_in: int) -> np.ndarray:
    top = 2 ** (bits - 1)
    return np.random.RandomState(0).randint(-top, top, (5, n_in)).astype(np.float32)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("n_in", [1, 3, 4, 8, 29, 128])
def test_code_j_is_at_bit_j_times_bits_of_its_row_and_the_rest_is_0(bits: int, n_in: int):
    codes = random_codes(bits, n_in)
    packed = pack(codes, bits)
    assert packed.dtype == np.uint8 and packed.shape == (5, packed_bytes(n_in, bits)) and packed.shape[1] % 4 == 0
    for row, stored in zip(codes, packed):
        number = int.from_bytes(stored.tobytes(), "little")
        found = [(number >> bits * j) % 2**bits - 2 ** (bits - 1) for j in range(n_in)]
        assert found == row.tolist()
        assert number >> bits * n_in == 0


@pytest.mark.parametrize(("bits", "width"), [(8, 256), (4, 128), (4, 256)])
def test_quantised_matrix_reads_what_is_packed(bits: int, width: int):
    codes, scale = random_codes(bits, 256), np.random.RandomState(1).uniform(1, 2, (5, 256 // width)).astype("f4")
    matrix = QuantisedMatrix((5, 256), bits, pack(codes, bits), (1, width), scale, zero=2 ** (bits - 1))
    assert np.array_equal(matrix.rows(0, 5), codes * np.repeat(scale, width, axis=1))


@pytest.mark.parametrize(
    ("dims", "width"),
    [((256, 4, 64, 640), 128), ((576, 9, 64, 1536), 64), ((96, 3, 32, 160), 32), ((64, 8, 8, 172), None)],
)
def test_a_group_has_the_largest_width_that_divides_every_row(dims: tuple[int, ...], width: int | None):
    dim, n_heads, head_dim, hidden_dim = dims
    config = tiny_config(dim=dim, n_heads=n_heads, n_kv_heads=1, head_dim=head_dim, hidden_dim=hidden_dim)
    assert group_width(config, 4) == width
    assert group_width(config, 8) is None
    weights = quantization_config(4, width)["config_groups"]["group_0"]["weights"]
    assert (weights["strategy"], weights["group_size"]) == ("group" if width else "channel", width)
