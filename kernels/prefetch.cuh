// Prefetching of a range of memory, by one instruction. Like the functions of ptx.cuh, this one has a body for the GPU
// and one for the emulation.
#pragma once
#include "ptx.cuh"

// Brings `bytes` bytes from p on into the L2 cache (cp.async.bulk.prefetch.L2); both are multiples of 16. One thread
// calls it for the whole range. It may stand before wait_for_predecessor: it reads nothing into the kernel, and the L2
// cache also gets what the predecessor writes later. Before sm_90, where no kernel waits for its predecessor, it does
// nothing.
__device__ __forceinline__ void prefetch_range(const void* p, unsigned bytes) {
#ifndef __CUDACC__
    if (uintptr_t(p) % 16 || bytes % 16) emulator::fail("prefetch of %u bytes at %p: no multiples of 16", bytes, p);
#elif __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes));
#endif
}
