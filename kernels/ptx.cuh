// All PTX instructions of these kernels, and everything else that has to be written differently for g++. Each function
// has two bodies: the instruction for the GPU, and a call of the emulator for the CPU, where the tests run each CUDA
// thread as a fiber. NVIDIA's PTX ISA explains each instruction under its name.
#pragma once
#include <cuda_bf16.h>

// The dynamic shared memory of a block. Its size is an argument of the launch.
__device__ __forceinline__ unsigned char* dynamic_shared() {
#ifdef __CUDACC__
    extern __shared__ __align__(128) unsigned char dynamic_shared_bytes[];
    return dynamic_shared_bytes;
#else
    return reinterpret_cast<unsigned char*>(emulator::dynamic_shared());
#endif
}

#ifdef __CUDACC__
__device__ __forceinline__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
#endif

// ---- programmatic dependent launch (griddepcontrol) ------------------------------------------------------------
// Before sm_90, a kernel starts only when its predecessor has ended, and both functions do nothing.

// A kernel may start while its predecessor still runs. Before this call it must not write at all, and it may only read
// what no kernel has written, or what was written two launches earlier or more: that launch has ended, because the
// predecessor has waited for it. Every thread of the block calls it once, even if the launch does not overlap.
__device__ __forceinline__ void wait_for_predecessor() {
#ifndef __CUDACC__
    emulator::wait_for_predecessor(__builtin_LINE());
#elif __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next launch may start when every block has made this call or has ended.
__device__ __forceinline__ void let_successor_start() {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- loads of weights ---------------------------------------------------------------------------------------
// A load of weights that stands before wait_for_predecessor also comes before it in the machine code, because these are
// ordinary loads (ld.global), which the assembler keeps on their side of the wait.
// Trap: a read-only load (ld.global.nc) may be moved across the wait in both directions. Weights would then be asked
// for too late, and the result of a kernel could be read too early. The compiler makes such loads of a pointer that is
// const and __restrict__. So no kernel has one; tests/cuda/test_machine_gates.py reads the machine code.

// For weights that one warp reads once: they take no place in the L1 cache.
__device__ __forceinline__ uint4 load_once(const uint4* p) {
#ifdef __CUDACC__
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
#else
    return *p;
#endif
}

// For the scale of a row or of a group of weights
__device__ __forceinline__ unsigned load_once(const unsigned* p) {
#ifdef __CUDACC__
    unsigned v;
    asm volatile("ld.global.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
#else
    return *p;
#endif
}

// For weights that every block reads: they stay in the L1 cache for the blocks that follow.
__device__ __forceinline__ uint4 load_kept(const uint4* p) {
#ifdef __CUDACC__
    uint4 v;
    asm volatile("ld.global.L1::evict_last.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
#else
    return *p;
#endif
}

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

// ---- arithmetic with small numbers --------------------------------------------------------------------------

// a b + c for two bf16 in each register (fma.rn.bf16x2). Numbers below 2^-126 are not taken for 0.
__device__ __forceinline__ unsigned fma_pairs(unsigned a, unsigned b, unsigned c) {
#ifdef __CUDACC__
    unsigned d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
#else
    return emulator::fma_pairs(a, b, c);
#endif
}

// The float16 with these 16 bits
__device__ __forceinline__ float half_as_float(unsigned bits) {
#ifdef __CUDACC__
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"((unsigned short)bits));
    return f;
#else
    return emulator::half_as_float(bits);
#endif
}

// ---- copies to shared memory that run during the arithmetic (cp.async) ---------------------------------------

// Copies 16 bytes; both addresses are multiples of 16. If not `valid`, it writes zeros and does not read `global`.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid = true) {
#ifdef __CUDACC__
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0)
                 : "memory");
#else
    emulator::copy_async(shared, global, valid);
#endif
}

// Puts the copies since the last call into a group.
__device__ __forceinline__ void commit_copies() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    emulator::commit_copies();
#endif
}

// Waits until all of this thread's groups except the latest LEFT are complete. After a barrier, other threads can read
// the copied data, too.
template <int LEFT>
__device__ __forceinline__ void wait_copies() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#else
    emulator::wait_copies(LEFT);
#endif
}

// ---- tensor cores (ldmatrix, mma.m16n8k16) ---------------------------------------------------------------
// Lane 4 g + t of a warp holds these elements, two neighbouring bf16 in each register of A and B:
//   A (16, 16): a[0] row g, a[1] row g + 8, both columns 2 t and 2 t + 1; a[2], a[3] the same rows, columns 8 further
//   B (16, 8):  b[0] rows 2 t and 2 t + 1, b[1] rows 8 further; both column g
//   D (16, 8):  d[0], d[1] row g, columns 2 t and 2 t + 1; d[2], d[3] the same columns of row g + 8
// Drawings are in linear_few.cu (B and D) and attention_prompt.cuh (A and D).

// d += a b
__device__ __forceinline__ void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    emulator::mma(d, a, b, __builtin_LINE());
#endif
}

// Loads four 8 x 8 matrices from shared memory. Lane 8 m + r gives the address of row r of matrix m, a multiple of 16
// bytes. Lane 4 g + t gets columns 2 t and 2 t + 1 of row g of matrix m in r[m]: the layout of A, or of B transposed.
__device__ __forceinline__ void load_matrices(unsigned (&r)[4], const void* row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
#else
    emulator::load_matrices<4>(r, row, false, __builtin_LINE());
#endif
}

// As load_matrices, but each matrix is transposed: the layout of B.
__device__ __forceinline__ void load_matrices_transposed(unsigned (&r)[4], const void* row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
#else
    emulator::load_matrices<4>(r, row, true, __builtin_LINE());
#endif
}
