// A row of a weight matrix times a vector, by a warp: the inner loop of linear.cu and qkv.cu.
// A lane takes 16 bytes of the row at a time, four loads in flight while the four before them are multiplied. The first
// four are under way before the predecessor has ended: weights depend on nobody. RMSNorm of the vector costs no launch
// of its own: every block computes it anew, 6 width bytes out of the second-level cache.
#pragma once
#include "rms_norm.cuh"

constexpr int IN_FLIGHT = 4;          // loads of a lane
constexpr int STEP = 32 * IN_FLIGHT;  // pieces of 16 bytes a warp has in hand
constexpr int LINE = 8;               // pieces of a line of the caches

// A warp's row of w, and the part of it that is on its way.
struct WeightRow {
    const uint4* pieces;
    int n_pieces;  // none for a row past the end
    uint4 loaded[IN_FLIGHT];
};

__device__ __forceinline__ void load(uint4 (&into)[IN_FLIGHT], const WeightRow& row, int first) {
#pragma unroll
    for (int j = 0; j < IN_FLIGHT; j++) {
        int i = first + 32 * j;
        into[j] = i < row.n_pieces ? load_once(row.pieces + i) : make_uint4(0, 0, 0, 0);
    }
}

// What may be done before the predecessor has ended: the first four loads of each lane are sent off, and the next 4 KB
// of the row, a line a lane, are fetched as far as the second-level cache.
__device__ __forceinline__ WeightRow begin_load(const bf16* w, int row, int n_out, int width) {
    WeightRow r;
    r.pieces = reinterpret_cast<const uint4*>(w + (size_t)row * width);
    r.n_pieces = row < n_out ? width / 8 : 0;
    int lane = threadIdx.x % 32, ahead = STEP + lane * LINE;
    load(r.loaded, r, lane);
    if (ahead < r.n_pieces) prefetch_l2(r.pieces + ahead);
    return r;
}

// The product with x, in every lane.
__device__ __forceinline__ float dot(WeightRow& row, const bf16* x) {
    float sum = 0;
    for (int first = threadIdx.x % 32; first < row.n_pieces; first += STEP) {
        uint4 next[IN_FLIGHT];
        load(next, row, first + STEP);
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; j++) {
            int i = first + 32 * j;
            if (i < row.n_pieces) {
                Eight a = unpack(row.loaded[j]), b = load_eight(x + 8 * i);
#pragma unroll
                for (int k = 0; k < 8; k++) sum += a.v[k] * b.v[k];
            }
            row.loaded[j] = next[j];
        }
    }
    return warp_sum(sum);
}

// RMSNorm of x, in shared memory.
__device__ __forceinline__ const bf16* normed(const float* x, const bf16* norm, int width, float eps) {
    bf16* out = reinterpret_cast<bf16*>(dynamic_shared());
    normalise(x, norm, out, width, eps);
    __syncthreads();
    return out;
}
