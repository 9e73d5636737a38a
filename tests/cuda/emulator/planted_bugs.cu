// Each kernel has one bug, of a kind that the CPU would forgive. The emulation must not.
#include "ptx.cuh"

typedef __nv_bfloat16 bf16;

extern "C" __global__ void write_behind(float* y, int n) { y[n] = 1; }
extern "C" __global__ void write_before(float* y) { y[-1] = 1; }
extern "C" __global__ void read_behind(const float* x, float* y, int n) { y[0] = x[n]; }

extern "C" __global__ void write_behind_dynamic_shared(float* y, int n) {
    float* shared = reinterpret_cast<float*>(dynamic_shared());
    shared[n] = 1;
    y[0] = shared[n];
}

extern "C" __global__ void write_behind_static_shared(float* y, int n) {
    __shared__ float shared[8];
    shared[n] = 1;
    y[0] = shared[n];
}

// A barrier is missing between the write and the neighbour's read.
extern "C" __global__ void missing_barrier(const float* x, float* y) {
    __shared__ float shared[64];
    shared[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = shared[63 - threadIdx.x];
}

// A barrier is missing before the array is written again.
extern "C" __global__ void missing_second_barrier(const float* x, float* y) {
    __shared__ float shared[64];
    float sum = 0;
    for (int i = 0; i < 4; i++) {
        shared[threadIdx.x] = x[64 * i + threadIdx.x];
        __syncthreads();
        sum += shared[(threadIdx.x + 7) % 64];
    }
    y[threadIdx.x] = sum;
}

// The lanes of a warp do not run in step: __syncwarp is missing.
extern "C" __global__ void missing_warp_barrier(const float* x, float* y) {
    __shared__ float shared[32];
    shared[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = shared[31 - threadIdx.x];
}

// Blocks add floats in the order in which they come.
extern "C" __global__ void unordered_sum(const float* x, float* y) { atomicAdd(y, x[blockIdx.x]); }

extern "C" __global__ void barrier_for_some(float* y) {
    if (threadIdx.x < 40) __syncthreads();
    y[threadIdx.x] = 1;
}

extern "C" __global__ void two_barriers(float* y) {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
    y[threadIdx.x] = 1;
}

extern "C" __global__ void barrier_after_exit(float* y) {
    if (threadIdx.x >= 40) return;
    __syncthreads();
    y[threadIdx.x] = 1;
}

extern "C" __global__ void divergent_shuffle(float* y) {
    if (threadIdx.x < 20)
        y[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 1);
    else
        y[threadIdx.x] = 0;
}

extern "C" __global__ void two_shuffles(float* y) {
    if (threadIdx.x < 16)
        y[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 1);
    else
        y[threadIdx.x] = __shfl_xor_sync(~0u, 2.0f, 1);
}

extern "C" __global__ void not_in_its_mask(float* y) { y[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1.0f, 1); }

extern "C" __global__ void reads_outside_its_mask(float* y) {
    if (threadIdx.x < 16) y[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1.0f, 16);
}

extern "C" __global__ void shuffle_across_a_short_warp(float* y) { y[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 1); }

extern "C" __global__ void missing_copy_wait(const float* x, float* y) {
    __shared__ __align__(16) float shared[128];
    copy_async(shared + 4 * threadIdx.x, x + 4 * threadIdx.x);
    commit_copies();
    __syncthreads();
    y[threadIdx.x] = shared[4 * threadIdx.x];
    wait_copies<0>();
}

extern "C" __global__ void waits_for_the_group_before(const float* x, float* y) {
    __shared__ __align__(16) float shared[128];
    copy_async(shared + 4 * threadIdx.x, x + 4 * threadIdx.x);
    commit_copies();
    wait_copies<1>();
    __syncthreads();
    y[threadIdx.x] = shared[4 * threadIdx.x];
    wait_copies<0>();
}

// The wait is each thread's own: the barrier that makes the neighbour's copy visible is missing.
extern "C" __global__ void missing_barrier_after_copy(const float* x, float* y) {
    __shared__ __align__(16) float shared[128];
    copy_async(shared + 4 * threadIdx.x, x + 4 * threadIdx.x);
    commit_copies();
    wait_copies<0>();
    y[threadIdx.x] = shared[4 * (31 - threadIdx.x)];
}

extern "C" __global__ void never_waits_for_its_copies(const float* x, float* y) {
    __shared__ __align__(16) float shared[128];
    copy_async(shared + 4 * threadIdx.x, x + 4 * threadIdx.x);
    commit_copies();
    y[threadIdx.x] = 0;
}

extern "C" __global__ void misaligned_load(const bf16* x, float* y) {
    uint4 v = *reinterpret_cast<const uint4*>(x + 4);
    y[0] = __uint_as_float(v.x);
}

extern "C" __global__ void misaligned_store(bf16* y) { *reinterpret_cast<uint4*>(y + 4) = make_uint4(0, 0, 0, 0); }

extern "C" __global__ void misaligned_copy(const bf16* x, float* y) {
    __shared__ __align__(16) float shared[4];
    copy_async(shared, x + 4);
    wait_copies<0>();
    y[0] = shared[0];
}

extern "C" __global__ void misaligned_matrix(float* y) {
    unsigned r[4];
    load_matrices(r, dynamic_shared() + 16 * (threadIdx.x % 16) + 8);
    y[threadIdx.x] = __uint_as_float(r[0]);
}

extern "C" __global__ void read_before_the_wait(const float* x, float* y) {
    float v = x[threadIdx.x];
    wait_for_predecessor();
    y[threadIdx.x] = v;
}

// The predecessor may still read what this overwrites.
extern "C" __global__ void write_before_the_wait(const float* x, float* y) {
    y[threadIdx.x] = 0;
    wait_for_predecessor();
    y[threadIdx.x] = x[threadIdx.x];
}

// Its successor would take its end for the end of all before it.
extern "C" __global__ void never_waits(const float* x, float* y) {
    if (x[threadIdx.x] > 1e30f) y[threadIdx.x] = 1;
}

// The position comes as a scalar: a graph replays the first one for ever.
extern "C" __global__ void append_at(const float* x, float* out, int position) { out[position] = x[0]; }
