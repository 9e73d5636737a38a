"""The page of predictions for a GPU is what its script writes, and its floors are those of Llama 3 8B."""

import re

import pytest
from gpu_assumptions import AFTER, BEFORE, H100, H200, TILES_128, WGMMA
from gpu_floor import LLAMA3_8B, attention_flops, cache_read, prefill_flops, weights_read
from gpu_host import CONFIG, KINDS
from gpu_launches import decoding_launches
from gpu_model import decode, is_product, prefill
from gpu_predictions import CHANGES, PAGE, STEPS, page
from null_device import launches

from llama3.cuda.source import kernel_path


def test_the_page_is_what_the_script_writes():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python benchmarks/gpu_predictions.py --write"


def test_the_floors_are_those_of_llama_3_8b():
    """Meta's own count is 8,030,261,248 parameters, of which the embedding is not read."""
    assert weights_read(LLAMA3_8B) == 2 * (8_030_261_248 - 128_256 * 4096)
    assert cache_read(LLAMA3_8B, 1) == 128 * 1024
    assert attention_flops(LLAMA3_8B, 8192) * 32 == pytest.approx(17.59e12, rel=1e-3)
    assert prefill_flops(LLAMA3_8B, 8192) == pytest.approx(131.94e12, rel=1e-3)


def test_the_recorded_launches_read_every_weight_once():
    for batch in (1, 8):
        matrices = {"norm_qkv_rope", "linear_add", "norm_swiglu", "norm_linear"}
        found = decoding_launches(LLAMA3_8B, batch, 512)
        read = sum(launch.weights for launch in found if launch.name in matrices or "_few" in launch.name)
        norms = 2 * LLAMA3_8B.dim * (2 * LLAMA3_8B.n_layers + 1)
        assert read + norms == weights_read(LLAMA3_8B)


@pytest.mark.parametrize(
    ("kind", "on_h100", "on_h200"), [("Int8", 2.50, 1.75), ("Fp8", 2.50, 1.75), ("Int4", 1.33, 0.93)]
)
def test_the_floors_of_quantised_matrices_are_those_of_their_bits(kind, on_h100, on_h200):
    """8 bits; 4 bits and for 128 columns 32 of scale and zero. Padding and the scales of rows are 1.5 % at most."""
    for card, floor in ((H100, on_h100), (H200, on_h200)):
        assert floor - 0.005 <= 1e3 * weights_read(LLAMA3_8B, kind) / card.read <= 1.015 * floor + 0.005


@pytest.mark.parametrize("kind", ["Int8", "Int4"])
def test_a_step_reads_each_quantised_matrix_once(kind):
    """More than 32 rows read them twice."""
    norms = 2 * LLAMA3_8B.dim * (2 * LLAMA3_8B.n_layers + 1)
    for batch, times in ((1, 1), (8, 1), (64, 2)):
        found = decoding_launches(LLAMA3_8B, batch, 512, kind)
        assert sum(launch.weights for launch in found if is_product(launch)) == times * (
            weights_read(LLAMA3_8B, kind) - norms
        )
        assert decode(H200, AFTER, batch, 128, kind).share < 1


def test_a_predicted_step_has_the_launches_of_the_code():
    for batch in (1, 8, 64):
        assert decode(H200, AFTER, batch, 128).launches == len(decoding_launches(LLAMA3_8B, batch, 512))


def test_a_graph_counts_its_kernels_and_its_products():
    for batch in (1, 8, 64):  # 64: by cuBLAS
        assert launches(CONFIG, batch, KINDS["greedy"]) == len(decoding_launches(CONFIG, batch, 80))


@pytest.mark.parametrize(("kernel", "file"), [(TILES_128, "attention_prompt.cu"), (WGMMA, "attention_wgmma.cu")])
def test_the_counts_of_a_prompt_kernel_are_those_that_its_file_states(kernel, file):
    """Another test compares the file with the machine code."""
    text = kernel_path(file).read_text()
    assert re.findall(r"(\d+) other instructions", text) == [str(kernel.instructions)]
    assert re.findall(r"([\d,]+) cycles of shared memory", text) == [f"{kernel.shared_cycles:,}"]


@pytest.mark.parametrize("card", [H100, H200], ids=lambda card: card.name)
def test_one_sequence_is_predicted_near_the_limit_of_reading(card):
    assert decode(card, AFTER, 1, 128).share >= 0.93
    assert decode(card, AFTER, 1, 8192).share >= 0.91


@pytest.mark.parametrize("card", [H100, H200], ids=lambda card: card.name)
def test_no_prediction_is_below_its_floor_and_no_change_makes_a_step_slower(card):
    for batch, context in STEPS:
        step = decode(card, AFTER, batch, context)
        assert 0 < step.share < 1 and step.seconds < decode(card, BEFORE, batch, context).seconds
        for name, without in CHANGES.items():
            assert decode(card, without, batch, context).seconds >= step.seconds - 1e-12, (name, batch, context)
    for T in (128, 8192):
        assert prefill(card, AFTER, T).seconds >= prefill(card, AFTER, T).flops / card.tensor_peak
