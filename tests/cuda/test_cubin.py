"""A kernel for one architecture becomes a file of machine code, once for each text and set of options."""

import subprocess

import pytest
from cupy.cuda import compiler

from llama3.cuda import cubin
from llama3.cuda.attention_prompt import wgmma_kernel
from llama3.cuda.device import CupyDevice
from llama3.cuda.launch import Kernel
from tests.cuda.machine_code import disassembler


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_file_is_whole_and_holds_the_instructions_of_its_architecture(cache):
    file = cubin.cubin_file(wgmma_kernel().kernel)
    assert file.parent == cache
    shown = subprocess.run([str(disassembler()), "-c", str(file)], capture_output=True, text=True, check=True).stdout
    assert ".text.attention_wgmma" in shown and "HGMMA.64x128x16" in shown


def test_it_is_compiled_once_for_each_text_and_set_of_options(monkeypatch, tmp_path):
    compiled = []
    monkeypatch.setattr(compiler, "_NVRTCProgram", lambda *args, **kwargs: FakeProgram(compiled))
    text = tmp_path / "kernel.cu"
    text.write_text('extern "C" __global__ void nothing() {}\n')
    kernels = [Kernel(str(text), "nothing", defines, architecture="sm_90a") for defines in ((), ("N=1",))]
    files = {cubin.cubin_file(kernel) for kernel in kernels * 2}
    assert len(files) == len(compiled) == 2 and all("-arch=sm_90a" in options for options in compiled)
    assert {file.read_bytes() for file in files} == {b"machine code\0"}
    text.write_text('extern "C" __global__ void nothing() { }\n')
    assert cubin.cubin_file(kernels[0]) not in files and len(compiled) == 3
    assert {file.suffix for file in next(iter(files)).parent.iterdir()} == {".cubin"}


class FakeProgram:
    def __init__(self, compiled):
        self.compiled = compiled

    def compile(self, options):
        self.compiled.append(options)
        return b"machine code", None


def test_cupy_loads_the_file_of_a_kernel_for_one_architecture_and_compiles_the_others(monkeypatch):
    device = object.__new__(CupyDevice)
    device._cupy = type("cupy", (), {"RawModule": staticmethod(lambda **arguments: arguments)})
    monkeypatch.setattr("llama3.cuda.device.cubin_file", lambda kernel: f"{kernel.name}.cubin")
    assert device._module(wgmma_kernel().kernel) == {"path": "attention_wgmma.cubin"}
    assert set(device._module(Kernel("lora.cu", "lora_a"))) == {"code", "options"}
