// All the PTX of these kernels, and what else nvcc and g++ spell differently. Each function has two bodies: the
// instruction for the GPU, and its twin for the CPU, where the tests run the kernels one fiber a thread.
// The instructions' names lead to their pages in NVIDIA's PTX ISA.
#pragma once
#include <cuda_bf16.h>

// A block's dynamic shared memory, as many bytes as its launch asks for.
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

// ---- programmatic dependent launch (griddepcontrol; before sm_90 a kernel starts when its predecessor has ended) ----

// A launch may overlap the one before it. Only after this may it read what a kernel has written, or write anything.
// Every thread of the block calls it, once, also where the launch does not overlap.
// A parameter that a kernel writes is never __restrict__ where another reads it: that would let the compiler take it
// for a constant of the launch and read it ahead of the wait. Weights are such constants.
__device__ __forceinline__ void wait_for_predecessor() {
#ifndef __CUDACC__
    emulator::wait_for_predecessor(__builtin_LINE());
#elif __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next launch may start when every block has said this or has ended.
__device__ __forceinline__ void let_successor_start() {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- loads that pass by the first-level cache (ld.global.nc): for weights, which are read once a launch -------
// and written by no kernel: the read-only path does not see writes, not even behind wait_for_predecessor.

__device__ __forceinline__ uint4 load_once(const uint4* p) {
#ifdef __CUDACC__
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
#else
    return *p;
#endif
}

// The line of p, which someone will load soon, as far as the second-level cache (prefetch.global.L2). A hint.
__device__ __forceinline__ void prefetch_l2(const uint4* p) {
#ifdef __CUDACC__
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#endif
}

// ---- copies to shared memory that run beside the arithmetic (cp.async) ---------------------------------------

// 16 bytes, both sides at a multiple of 16. Where `valid` is false 16 zeros, and `global` is not read.
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

// The copies since the last call are a group.
__device__ __forceinline__ void commit_copies() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    emulator::commit_copies();
#endif
}

// All groups but the latest LEFT have landed: this thread's own. A barrier makes them everybody's.
template <int LEFT>
__device__ __forceinline__ void wait_copies() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#else
    emulator::wait_copies(LEFT);
#endif
}

// ---- tensor cores (ldmatrix, mma.m16n8k16) ---------------------------------------------------------------
// Lane 4 g + t of a warp holds, two neighbouring bf16 a register:
//   A (16, 16): a[0] row g, a[1] row g + 8, columns 2 t and 2 t + 1; a[2], a[3] the same rows, 8 columns on
//   B (16, 8):  b[0] rows 2 t and 2 t + 1, b[1] rows 8 on; column g
//   D (16, 8):  d[0], d[1] row g, columns 2 t and 2 t + 1; d[2], d[3] row g + 8

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

// Four 8 x 8 matrices from shared memory: lane 8 m + r brings the address of row r of matrix m, at a multiple of 16.
// Lane 4 g + t gets columns 2 t and 2 t + 1 of row g of matrix m in r[m]: the layout of A, and of a transposed B.
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

// As load_matrices, each matrix transposed: the layout of B.
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
