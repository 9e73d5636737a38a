// A row of a weight matrix times a vector, by a warp: the inner loop of linear.cu and qkv.cu.
// A lane loads 16 bytes of the row at a time. Four loads are in flight while the four before them are multiplied. The
// first four start before the predecessor has ended, because no kernel writes weights. RMSNorm of the vector needs no
// launch of its own: every block computes it, from 6 width bytes in the L2 cache.
#pragma once
#include "rms_norm.cuh"

constexpr int IN_FLIGHT = 4;          // loads that a lane has in flight
constexpr int STEP = 32 * IN_FLIGHT;  // pieces of 16 bytes that a warp multiplies in one pass of its loop
constexpr int AHEAD = 2 * STEP;       // pieces that are prefetched behind the first STEP: 4 KB

// The row of w that a warp multiplies, and its pieces in flight. A piece is 16 bytes.
template <class W>
struct WeightRow;

template <>
struct WeightRow<bf16> {
    const uint4* pieces;
    int n_pieces;  // 0 for a row past the end of w
    uint4 loaded[IN_FLIGHT];
};

__device__ __forceinline__ void load(uint4 (&into)[IN_FLIGHT], const WeightRow<bf16>& row, int first) {
#pragma unroll
    for (int j = 0; j < IN_FLIGHT; j++) {
        int i = first + 32 * j;
        into[j] = i < row.n_pieces ? load_once(row.pieces + i) : make_uint4(0, 0, 0, 0);
    }
}

// What a warp does before wait_for_predecessor: it starts the first four loads of each lane, and prefetches the next
// 4 KB of the row into the L2 cache.
__device__ __forceinline__ WeightRow<bf16> begin_load(const bf16* w, int row, int n_out, int width) {
    WeightRow<bf16> r;
    r.pieces = reinterpret_cast<const uint4*>(w + (size_t)row * width);
    r.n_pieces = row < n_out ? width / 8 : 0;
    int lane = threadIdx.x % 32;
    load(r.loaded, r, lane);
    if (lane == 0 && r.n_pieces > STEP) prefetch_range(r.pieces + STEP, 16 * min(AHEAD, r.n_pieces - STEP));
    return r;
}

// The dot product with x; every lane gets it.
__device__ __forceinline__ float dot(WeightRow<bf16>& row, const bf16* x) {
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

// x as `dot` reads it, for weights of the kind that the first argument has: where it is.
__device__ __forceinline__ const bf16* prepared(bf16, const bf16* x, int) { return x; }

// RMSNorm of x, in dynamic shared memory.
__device__ __forceinline__ const bf16* normed(bf16, const float* x, const NormWeight& norm, int width, float eps) {
    bf16* out = reinterpret_cast<bf16*>(dynamic_shared());
    normalise(x, norm, out, width, eps);
    __syncthreads();
    return out;
}
