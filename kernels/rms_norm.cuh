// RMSNorm of one row by a block, for rms_norm.cu and for the products that begin with it. Both give the same bits.
#pragma once
#include "common.cuh"

constexpr int THREADS = 256, WARPS = THREADS / 32;

// out = x / sqrt(mean(x^2) + eps) * weight. All 256 threads of the block call it. Each thread can read what the others
// have written only after another barrier.
__device__ __forceinline__ void normalise(const float* x_row, const bf16* weight, bf16* out_row, int dim, float eps) {
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
    float scale = rsqrtf(sum / dim + eps);

    for (int i = threadIdx.x * 8; i < dim; i += THREADS * 8) {
        Eight e = load_eight(x_row + i), w = load_eight(weight + i);
#pragma unroll
        for (int j = 0; j < 8; j++) e.v[j] *= scale * w.v[j];
        store_eight(out_row + i, e);
    }
}
