// RMSNorm of one row by a block, for rms_norm.cu and for the products that begin with it. Both give the same bits.
#pragma once
#include "common.cuh"

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int EARLY = 2;  // pieces of eight weights that a thread loads early: of 4,096 weights, all

// The weight of a norm, and this thread's first pieces of it, which are loaded before wait_for_predecessor
struct NormWeight {
    const bf16* weight;
    uint4 loaded[EARLY];
};

__device__ __forceinline__ NormWeight begin_norm(const bf16* weight, int dim) {
    NormWeight w;
    w.weight = weight;
#pragma unroll
    for (int j = 0; j < EARLY; j++) {  // past the end: the last piece, which is not used
        int i = min((int)(threadIdx.x + j * THREADS) * 8, dim - 8);
        w.loaded[j] = load_kept(reinterpret_cast<const uint4*>(weight + i));
    }
    return w;
}

// Eight channels of the result
__device__ __forceinline__ Eight scaled(Eight x, float scale, uint4 weight) {
    Eight w = unpack(weight);
#pragma unroll
    for (int j = 0; j < 8; j++) x.v[j] *= scale * w.v[j];
    return x;
}

// 1 / sqrt(mean(x^2) + eps). Not a template: the tests fill shared arrays with NaN only outside of templates.
__device__ __forceinline__ float norm_scale(const float* x_row, int dim, float eps) {
    __shared__ float part[WARPS];
    float sum = 0;
    for (int i = threadIdx.x * 8; i < dim; i += THREADS * 8) {
        Eight e = load_eight(x_row + i);
#pragma unroll
        for (int j = 0; j < 8; j++) sum += e.v[j] * e.v[j];
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) sum += part[i];  // the same order in every thread, so the same bits
    return rsqrtf(sum / dim + eps);
}

// Where channels i to i + 7 are stored
__device__ __forceinline__ int in_order(int i) { return i; }

// out = x / sqrt(mean(x^2) + eps) * weight. All 256 threads of the block call it. Each thread can read what the others
// have written only after another barrier.
template <int (*place)(int) = in_order>
__device__ __forceinline__ void normalise(const float* x_row, const NormWeight& w, bf16* out_row, int dim, float eps) {
    int first = threadIdx.x * 8;
    float scale = norm_scale(x_row, dim, eps);
#pragma unroll
    for (int j = 0; j < EARLY; j++) {
        int i = first + j * THREADS * 8;
        if (i < dim) store_eight(out_row + place(i), scaled(load_eight(x_row + i), scale, w.loaded[j]));
    }
    for (int i = first + EARLY * THREADS * 8; i < dim; i += THREADS * 8) {
        uint4 weight = load_kept(reinterpret_cast<const uint4*>(w.weight + i));
        store_eight(out_row + place(i), scaled(load_eight(x_row + i), scale, weight));
    }
}
