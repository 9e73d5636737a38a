// The matrix instructions of Hopper (wgmma), which only code for sm_90a can use; other GPUs have none of them. As in
// ptx.cuh, each function has two bodies. NVIDIA's PTX ISA explains each instruction under its name.
//
// A warpgroup is four neighbouring warps, 128 threads. Its threads start a product together and go on; the tensor cores
// read the matrices from shared memory meanwhile. A program takes these steps:
//   wgmma_fence()        before the products: registers that were used until now become accumulators, or operand A
//   multiply(...)        once or more, which only starts products
//   wgmma_commit()       makes these products a group
//   wgmma_wait<LEFT>(d)  waits until all groups except the latest LEFT have ended. Until then no thread may use the
//                        accumulators, change the registers of A, or write into the shared memory of A or B.
#pragma once
#include "ptx.cuh"

// ---- matrices in shared memory ---------------------------------------------------------------------------
// A panel is a matrix of 64 columns of bf16: a row has 128 bytes, in 8 pieces of 16. Piece i of row r lies in place
// i ^ (r % 8) of its row (the 128-byte swizzle). So 8 rows' pieces of the same column lie in different banks. A panel
// begins at a multiple of 1024 bytes. A matrix with more columns has several panels, one after another.
//
//             place 0   1   2   3   4   5   6   7
//   row 0           0   1   2   3   4   5   6   7
//   row 1           1   0   3   2   5   4   7   6     the number of the piece that lies there
//   row 2           2   3   0   1   6   7   4   5
//   ...
//   row 7           7   6   5   4   3   2   1   0
constexpr int PANEL = 64;  // columns

// Where a piece of a row lies in a panel, counted in elements.
__device__ __forceinline__ int place(int row, int piece) { return row * PANEL + (piece ^ row % 8) * 8; }

// What an instruction is told about a matrix ("matrix descriptor"): where it begins; "leading", the bytes from panel to
// panel if the product runs over several; "stride", the bytes from eight rows to the next eight; and the swizzle.
__device__ __forceinline__ unsigned long long descriptor(const void* start, unsigned leading) {
#ifdef __CUDACC__
    unsigned long long address = shared_address(start);
#else
    unsigned long long address = emulator::shared_address(start);
#endif
    constexpr unsigned long long STRIDE = 8 * PANEL * 2, SWIZZLE = 1;
    return address >> 4 | (unsigned long long)(leading >> 4) << 16 | (STRIDE >> 4) << 32 | SWIZZLE << 62;
}

// Makes what this thread has written to shared memory visible to the tensor cores, which read it on another path (the
// "async proxy"). A thread calls it after it has waited for its copies, and before the barrier.
__device__ __forceinline__ void fence_async_proxy() {
#ifdef __CUDACC__
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
    emulator::fence_async_proxy();
#endif
}

// ---- products --------------------------------------------------------------------------------------------
// d: 64 rows of 128 columns. Each of the four warps holds 16 rows, in the layout that attention_prompt.cuh shows:
// d[j] are the lane's four elements of columns 8 j to 8 j + 7.

__device__ __forceinline__ void wgmma_fence() {
#ifdef __CUDACC__
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
    emulator::wgmma_fence();
#endif
}

__device__ __forceinline__ void wgmma_commit() {
#ifdef __CUDACC__
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
    emulator::wgmma_commit();
#endif
}

#define FOUR(d) "+f"((d)[0]), "+f"((d)[1]), "+f"((d)[2]), "+f"((d)[3])
#define SIXTEEN(d, j) FOUR(d[j]), FOUR(d[j + 1]), FOUR(d[j + 2]), FOUR(d[j + 3])
#define ACCUMULATORS(d) SIXTEEN(d, 0), SIXTEEN(d, 4), SIXTEEN(d, 8), SIXTEEN(d, 12)
#define REGISTERS                                                                                                 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, "  \
    "%23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "   \
    "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"

// d names the accumulators, so that the compiler does not move their use to a place before the wait.
template <int LEFT>
__device__ __forceinline__ void wgmma_wait(float (&d)[16][4]) {
#ifdef __CUDACC__
    asm volatile("wgmma.wait_group.sync.aligned %64;" : ACCUMULATORS(d) : "n"(LEFT) : "memory");
#else
    emulator::wgmma_wait(LEFT);
    emulator::wgmma_check_complete(d[0]);
#endif
}

// d = a b^T, or d += a b^T. a (64, 16) and b (128, 16) are in shared memory; their 16 columns are neighbours in memory.
__device__ __forceinline__ void multiply(float (&d)[16][4], unsigned long long a, unsigned long long b, bool add) {
#ifdef __CUDACC__
    asm volatile("{.reg .pred add;\n"
                 "setp.ne.b32 add, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " REGISTERS ", %64, %65, add, 1, 1, 0, 0;}"
                 : ACCUMULATORS(d)
                 : "l"(a), "l"(b), "r"((int)add));
#else
    emulator::wgmma<128>(d[0], nullptr, a, b, false, add, __builtin_LINE());
#endif
}

// d += a b. a (64, 16) is in registers, 16 rows in each warp; b (16, 128) is in shared memory, in two panels.
__device__ __forceinline__ void multiply(float (&d)[16][4], const unsigned (&a)[4], unsigned long long b) {
#ifdef __CUDACC__
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " REGISTERS
                 ", {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
                 : ACCUMULATORS(d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#else
    emulator::wgmma<128>(d[0], a, 0, b, true, true, __builtin_LINE());
#endif
}
