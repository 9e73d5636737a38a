"""Hopper's kernel for prompts runs in the model, and needs each of its waits and fences: without one, it is refused."""

import pytest

from llama3.cuda import source
from llama3.resources import resource
from tests.cuda import test_attention_prompt, test_transformer
from tests.cuda.emulator import build
from tests.cuda.emulator.device import EmulationError

KERNELS = resource("kernels")
FILE = "attention_wgmma.cu"
# Each statement, how often it stands in the file, and what the emulation says without it
NEEDED = {
    "fence_async_proxy();": (1, "without fence.proxy.async"),
    "wait_copies<LEFT>();": (1, "still copies"),
    "wgmma_fence();": (3, "no wgmma.fence"),
    "wgmma_commit();": (2, "under way|did not wait"),
    "wgmma_wait<0>(scores);": (1, "may still read"),
    "wgmma_wait<1>(scores);": (1, "written before"),
    "wgmma_wait<0>(partial_out);": (2, "may still read|did not wait"),
}


@pytest.mark.slow  # each compiles the kernel again
@pytest.mark.parametrize(("statement", "i"), [(text, i) for text, (count, _) in NEEDED.items() for i in range(count)])
def test_a_removed_wait_or_fence_is_noticed(emulated, monkeypatch, tmp_path, statement, i):
    count, message = NEEDED[statement]
    for path in KERNELS.iterdir():
        (tmp_path / path.name).write_text(path.read_text())
    pieces = (KERNELS / FILE).read_text().split(statement)
    assert len(pieces) == count + 1
    pieces[i : i + 2] = [";".join(pieces[i : i + 2])]
    (tmp_path / FILE).write_text(statement.join(pieces))
    monkeypatch.setattr(source, "kernel_path", tmp_path.joinpath)
    emulated.capability = 90
    build.load.cache_clear()
    build._library.cache_clear()
    try:
        with pytest.raises(EmulationError, match=message):
            test_attention_prompt.attention(emulated, *test_attention_prompt.inputs(((20, 300),), 1, 1, 128, 320))
    finally:
        build.load.cache_clear()
        build._library.cache_clear()


def test_the_model_uses_it_for_prompts_of_any_length(emulated):
    emulated.capability = 90
    launched = []
    emulated._launch = lambda launch: launched.append(launch.kernel.name) or emulated._run(launch)
    config = test_transformer.CONFIGS["tied, wide heads"]
    model, reference = test_transformer.on_device(emulated, config), test_transformer.in_numpy(config)
    rows = [(0, test_transformer.tokens_of(140, 0, config)), (1, test_transformer.tokens_of(2, 1, config))]
    found, expected = (test_transformer.forward(m, m.new_cache(2, 160), *rows) for m in (model, reference))
    test_transformer.assert_agree(found, expected)
    assert launched.count("attention_wgmma") == config.n_layers


def test_every_wait_and_fence_of_the_file_is_in_the_table():
    text = (KERNELS / FILE).read_text()
    assert all(text.count(statement) == count for statement, (count, _) in NEEDED.items())
    words = ("fence_async_proxy(", "wait_copies<", "wgmma_fence(", "wgmma_commit(", "wgmma_wait<")
    assert sum(text.count(word) for word in words) == sum(count for count, _ in NEEDED.values())
