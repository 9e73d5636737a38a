"""The memory that is calculated beforehand is the memory that is used, and a refusal says what would fit."""

import pytest

from llama3.config import ModelConfig
from llama3.cuda.memory import cache_bytes, check_memory, check_shape, needed_bytes, weight_bytes, workspace_bytes
from llama3.cuda.transformer import Transformer
from llama3.cuda.weights import upload_weights
from llama3.engine import Engine, Request
from llama3.errors import DeviceError
from llama3.sampling_params import SamplingParams
from tests.cuda.test_transformer import CONFIGS, weights_of

LLAMA3_8B = ModelConfig(4096, 32, 32, 8, 128, 14336, 128256)


def test_the_8b_takes_what_its_card_says():
    assert weight_bytes(LLAMA3_8B) == 2 * 8_030_261_248
    keys_and_values = 131_072 * 8192
    assert keys_and_values < cache_bytes(LLAMA3_8B, 1, 8192) < 1.01 * keys_and_values


def test_what_is_allocated_is_what_was_calculated(device, monkeypatch):
    """The weights take exactly as much. A step may take less, or up to 1 MB more."""
    config = CONFIGS["grouped queries"]
    sizes, alloc = [], device.alloc

    def counted(shape, dtype, sizes=sizes, alloc=alloc):
        array = alloc(shape, dtype)
        sizes.append(array.nbytes)
        return array

    with monkeypatch.context() as patch:
        patch.setattr(device, "alloc", counted)
        weights = upload_weights(device, weights_of(config))
        assert sum(sizes) == weight_bytes(config)
        sizes.clear()
        engine = Engine(Transformer(device, config, weights), slots=2)
        for n in (200, 3):
            engine.submit(Request([1] * n, SamplingParams(seed=0), 3))
        while engine.busy:
            engine.step()
    calculated = cache_bytes(config, 2, config.max_seq_len) + workspace_bytes(config, 2)
    assert sum(sizes) <= calculated + (1 << 20), (sum(sizes), calculated)


def test_a_small_gpu_is_told_what_would_fit():
    check_memory(LLAMA3_8B, 1, 8192, needed_bytes(LLAMA3_8B, 1, 8192))
    with pytest.raises(DeviceError) as error:
        check_memory(LLAMA3_8B, 1, 8192, needed_bytes(LLAMA3_8B, 1, 2048) + 1000)
    message = str(error.value)
    assert "16.06 GB weights" in message and "a context of 2,048 would fit" in message and "\n" not in message
    with pytest.raises(DeviceError, match="for 8 sequences of 8,192 tokens"):
        check_memory(LLAMA3_8B, 8, 8192, 20 * 10**9)
    with pytest.raises(DeviceError, match=r"8\.00 GB free; not even a context of 256 would fit"):
        check_memory(LLAMA3_8B, 1, 8192, 8 * 10**9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 96}, "head_dim is 96; the CUDA kernels take 64 or 128"),
        ({"dim": 4100}, "dim is 4100; the CUDA kernels take multiples of 64"),
        ({"hidden_dim": 1000}, "hidden_dim is 1000"),
    ],
)
def test_a_shape_that_the_kernels_do_not_support_is_named(changes, message):
    check_shape(LLAMA3_8B)
    with pytest.raises(DeviceError, match=message):
        check_shape(ModelConfig(**{**vars(LLAMA3_8B), **changes}))
