"""What a step of the prompt kernels costs, counted in their machine code, and the speed that follows. Needs no GPU.

    python benchmarks/gpu_attention_counts.py                  # for an H100, from published figures
    python benchmarks/gpu_attention_counts.py --ghz 1.6 --sms 78

A step is one turn of a kernel's loop, in which a block multiplies all its rows with KEYS keys and values. Its machine
code is compiled by NVRTC and read by nvdisasm; the mask, which only the last steps of a block apply, is left out. Each
instruction costs one issue slot of a scheduler. Some also use a unit that all warps share, which takes longer.
"""

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from gpu_assumptions import REACHED  # the file beside this one

sys.path.insert(0, str(Path(__file__).parents[1]))
from llama3.cuda.source import kernel_source
from tests.cuda.compile_gates import compiled
from tests.cuda.machine_code import Instruction, MachineCode, disassemble

SCHEDULERS = 4  # of an SM; each has its warps, and starts one instruction a cycle
PEAK = 4096  # FLOPs that an SM's tensor cores do in a cycle
# The share of that peak which an instruction reaches. mma.sync on Hopper: microbenchmarks, arXiv 2402.13499.
SHARE = {"HMMA": 0.62, "HGMMA": 1.0}
WAVEFRONT = 128  # bytes that shared memory reads or writes in a cycle
EXP2 = 8  # cycles in which a scheduler's unit computes exp2 for a warp
WORK = {"HMMA", "HGMMA", "LDSM", "LDGSTS", "MUFU", "BAR", "F2FP"}  # what a step cannot do without


@dataclass(frozen=True)
class PromptKernel:
    name: str
    file: str
    defines: tuple[str, ...]
    architecture: str
    rows: int  # of a block
    keys: int  # of a step
    warps: int  # of a block
    blocks: int  # that fit on an SM at a time
    head_dim: int = 128

    @property
    def flops(self) -> int:
        """Of a step of one block: two products."""
        return 4 * self.rows * self.keys * self.head_dim


MMA = PromptKernel(
    "attention_prompt", "attention_prompt.cu", ("HEAD_DIM=128", "ROWS=128"), "90", 128, 64, warps=4, blocks=2
)
WGMMA = PromptKernel("attention_wgmma", "attention_wgmma.cu", (), "90a", 128, 128, warps=8, blocks=1)
KERNELS = (MMA, WGMMA)


def machine_code(kernel: PromptKernel) -> MachineCode:
    cubin, _ = compiled(kernel_source(kernel.file), kernel.file, kernel.defines, kernel.architecture)
    return disassemble(cubin)[kernel.name]


def step(code: MachineCode) -> list[Instruction]:
    """The instructions of one turn of the loop with the most products, without what a branch skips in most turns.

    A forward branch is taken if it skips no work, only the mask. Otherwise it is not: it would skip the copies.
    """
    loop = max(code.loops(), key=lambda loop: sum(i.name in SHARE for i in loop))
    first = code.instructions.index(loop[0])
    path, at = [], first
    while at < first + len(loop):
        instruction = code.instructions[at]
        path.append(instruction)
        to = code.labels[instruction.target] if instruction.target else 0
        skipped = code.instructions[at + 1 : to]
        at = to if at < to <= first + len(loop) and not WORK & {i.name for i in skipped} else at + 1
    return path


def counts(kernel: PromptKernel) -> Counter[str]:
    """How often a warp executes each instruction in a step, by its name in the machine code."""
    return Counter(i.name for i in step(machine_code(kernel)))


@dataclass(frozen=True)
class Cost:
    """Cycles in which all blocks of an SM complete a step, if nothing but this limited them."""

    issue: float  # instructions other than products, of all warps of a scheduler
    tensor: float
    shared: float
    exp2: float

    @property
    def together(self) -> float:
        """If a product and other instructions of the same scheduler never overlap, or if shared memory limits."""
        return max(self.issue + self.tensor, self.shared)


def cost(kernel: PromptKernel, found: Counter[str]) -> Cost:
    warps = kernel.warps * kernel.blocks
    products = "HGMMA" if found["HGMMA"] else "HMMA"
    # Bytes a warp moves: ldmatrix and cp.async 16 a lane. wgmma reads A (64, 16), in the first product only, and
    # B (16, 128) for four warps.
    moved = (found["LDSM"] + found["LDGSTS"]) * 32 * 16 + found["HGMMA"] * (64 / 2 + 128) * 16 * 2 / 4
    return Cost(
        issue=(found.total() - found[products]) * warps / SCHEDULERS,
        tensor=kernel.flops * kernel.blocks / PEAK / SHARE[products],
        shared=moved * warps / WAVEFRONT,
        exp2=found["MUFU"] * EXP2 * warps / SCHEDULERS,
    )


def useful_share(kernel: PromptKernel, tokens: int) -> float:
    """The share of the computed scores that a causal prompt of this length needs; the rest is masked."""
    ends = range(kernel.rows, tokens + kernel.rows, kernel.rows)
    computed = sum(kernel.rows * -(-min(end, tokens) // kernel.keys) * kernel.keys for end in ends)
    return tokens * (tokens + 1) / 2 / computed


def predicted_tflops(kernel: PromptKernel, found: Counter[str], tokens: int, sms: int, ghz: float) -> float:
    """TFLOP/s of a causal prompt. Latencies are not counted: the other warps of a scheduler hide them."""
    per_cycle = kernel.flops * kernel.blocks / cost(kernel, found).together
    return per_cycle * useful_share(kernel, tokens) * sms * ghz / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sms", type=int, default=132, help="multiprocessors of the GPU")
    parser.add_argument("--ghz", type=float, default=1.755, help="their clock")
    parser.add_argument("--tokens", type=int, default=8192, help="length of the prompt")
    args = parser.parse_args()
    for kernel in KERNELS:
        found = counts(kernel)
        c = cost(kernel, found)
        names = ", ".join(f"{n} {name}" for name, n in found.most_common())
        print(f"{kernel.file}, a warp's step: {found.total()} instructions: {names}")
        print(
            f"  cycles of an SM for {kernel.blocks} block(s): issue {c.issue:.0f}, tensor cores {c.tensor:.0f}, "
            f"shared memory {c.shared:.0f}, exp2 {c.exp2:.0f}"
        )
        tflops = predicted_tflops(kernel, found, args.tokens, args.sms, args.ghz)
        unmasked = tflops / useful_share(kernel, args.tokens)
        print(f"  without latencies: {tflops:.0f} TFLOP/s for a causal prompt of {args.tokens} tokens")
        expected = f"{REACHED:.0%} of the rate without a mask ({unmasked:.0f}): {REACHED * unmasked:.0f} TFLOP/s"
        print(f"  gpu_predictions.py expects {expected}")


if __name__ == "__main__":
    main()
