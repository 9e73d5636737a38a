// As linear.cuh, for rows of codes (weights.cuh): a row of a weight matrix times a vector, by a warp. A 16 byte piece
// holds 16 or 32 entries instead of 8, and arrives as fast. So there is a half or a quarter of the time to multiply an
// entry, too little for arithmetic in float. Tensor cores do it. The block first copies x into shared memory, in an
// order in which the lanes read different banks.
//
// A lane has four pairs of neighbouring entries of its row, w.x to w.w, and those of x in the same columns, x.x to x.w.
// It gives x to mma (ptx.cuh) as operand A and w as operand B, as if it held a row and a column of two matrices:
//
//   A, row g          x.x and x.z of lanes 4 g to 4 g + 3     B, column g, first product    w.x and w.z of these lanes
//   A, row g + 8      x.y and x.w of lanes 4 g to 4 g + 3                  second product   w.y and w.w of these lanes
//
// So element (g, g) of the first result and (g + 8, g) of the second are what the four lanes have to add. All others
// multiply entries with x of another column. They are waste, but a warp needs a quarter of an instruction for an entry.
// In the machine code of the loop for sm_90, a piece takes 36 instructions with Int8, 56 with Fp8 and 70 with Int4.
// While it arrives, there is time for 110 on an H200 and for 158 on an H100.
#pragma once
#include "linear.cuh"
#include "weights.cuh"

// Which pieces a lane takes: first_piece + j STRIDE, j < IN_FLIGHT. Four lanes together take a chunk (weights.cuh).
// With Int4, a chunk is a group, and the IN_FLIGHT groups of a lane are neighbours, because it loads their scales at
// once.
template <class W>
constexpr int STRIDE = GROUPED<W> ? 4 : 32;

template <class W>
__device__ __forceinline__ int first_piece() {
    int lane = threadIdx.x % 32;
    return GROUPED<W> ? lane / 4 * 4 * IN_FLIGHT + lane % 4 : lane;
}

// Where columns i to i + 7 of x are in shared memory. Eight lanes read 128 bytes at once, and with this from all 32
// banks.
template <class W>
__device__ __forceinline__ int apart(int i) {
    return GROUPED<W> ? i ^ (i / (IN_FLIGHT * GROUP) % 2 * 32) : i ^ (i / CHUNK<W> % 2 * 8);
}

template <class W>
struct WeightRow {
    const uint4 *pieces, *scale_pieces;
    int n_pieces;  // 0 for a row past the end of w
    uint4 loaded[IN_FLIGHT];
    uint4 scales;  // of the four groups in `loaded`, or in x that of the row
};

template <class W>
__device__ __forceinline__ void load(uint4 (&into)[IN_FLIGHT], const WeightRow<W>& row, int first) {
#pragma unroll
    for (int j = 0; j < IN_FLIGHT; j++) {
        int i = first + j * STRIDE<W>;
        into[j] = i < row.n_pieces ? load_once(row.pieces + i) : make_uint4(0, 0, 0, 0);
    }
}

template <class W>
__device__ __forceinline__ uint4 load_scales(const WeightRow<W>& row, int first) {
    int i = GROUPED<W> ? first / (4 * IN_FLIGHT) : 0;
    return first < row.n_pieces ? load_once(row.scale_pieces + i) : make_uint4(0, 0, 0, 0);
}

template <class W>
__device__ __forceinline__ WeightRow<W> begin_load(const W* w, int row, int n_out, int width) {
    WeightRow<W> r;
    const W* codes = row_of(w, row, width);
    r.pieces = reinterpret_cast<const uint4*>(codes);
    r.scale_pieces = reinterpret_cast<const uint4*>(scales_of(codes, width));
    r.n_pieces = row < n_out ? width / PER_PIECE<W> : 0;
    load(r.loaded, r, first_piece<W>());
    r.scales = load_scales(r, GROUPED<W> ? first_piece<W>() : 0);
    if (threadIdx.x % 32 == 0 && r.n_pieces > STEP) {
        prefetch_range(r.pieces + STEP, 16 * min(AHEAD, r.n_pieces - STEP));
    }
    return r;
}

// The sums of eight times four lanes, on the diagonals of two results
struct Diagonals {
    float first[4], second[4];
};

__device__ __forceinline__ void add(Diagonals& sums, uint4 w, uint4 x) {
    mma(sums.first, {x.x, x.y, x.z, x.w}, {w.x, w.z});
    mma(sums.second, {x.x, x.y, x.z, x.w}, {w.y, w.w});
}

// The dot product with x, which `prepared` or `normed` has put into shared memory; every lane gets it. All lanes take
// part in each mma. A lane past the end of the row multiplies by the zeros behind x.
template <class W>
__device__ __forceinline__ float dot(WeightRow<W>& row, const bf16* x) {
    float even = 0, odd = 0;  // sums of two elements that may be on the diagonal
    const bf16* columns[EIGHTHS<W>];
#pragma unroll
    for (int i = 0; i < EIGHTHS<W>; i++) {
        columns[i] = x + apart<W>(first_piece<W>() / 4 * CHUNK<W> + threadIdx.x % 4 * LANE<W> + i * NEXT<W>);
    }
    for (int pass = 0; pass < row.n_pieces; pass += STEP) {
        uint4 next[IN_FLIGHT], next_scales = row.scales;
        load(next, row, pass + STEP + first_piece<W>());
        if (GROUPED<W>) next_scales = load_scales(row, pass + STEP + first_piece<W>());
        const unsigned scales[IN_FLIGHT] = {row.scales.x, row.scales.y, row.scales.z, row.scales.w};
        Diagonals sums;
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; j++) {
            unsigned scale = scales[GROUPED<W> ? j : 0];
            if (GROUPED<W> || j == 0) sums = {};
#pragma unroll
            for (int i = 0; i < EIGHTHS<W>; i++) {
                uint4 w = eighth(W(), row.loaded[j], i, zero_of<W>(scale));
                add(sums, w, *reinterpret_cast<const uint4*>(columns[i] + j * STRIDE<W> / 4 * CHUNK<W>));
            }
            if (GROUPED<W> || j == IN_FLIGHT - 1) {
                even += scale_of<W>(scale) * (sums.first[0] + sums.second[2]);
                odd += scale_of<W>(scale) * (sums.first[1] + sums.second[3]);
            }
            row.loaded[j] = next[j];
        }
        row.scales = next_scales;
#pragma unroll
        for (int i = 0; i < EIGHTHS<W>; i++) columns[i] += STEP / 4 * CHUNK<W>;
    }
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    return warp_sum(t != g / 2 ? 0 : g % 2 ? odd : even);  // element (g, g) is in column g % 2 of lane t = g / 2
}

// Zeros behind x, as far as `dot` reads
template <class W>
__device__ __forceinline__ void pad(bf16* x, int width) {
    constexpr int COLUMNS = STEP * PER_PIECE<W>;
    for (int i = width + threadIdx.x * 8; i < (width + COLUMNS - 1) / COLUMNS * COLUMNS; i += THREADS * 8) {
        *reinterpret_cast<uint4*>(x + apart<W>(i)) = make_uint4(0, 0, 0, 0);
    }
}

// x in dynamic shared memory
template <class W>
__device__ __forceinline__ const bf16* prepared(W, const bf16* x, int width) {
    bf16* out = reinterpret_cast<bf16*>(dynamic_shared());
    for (int i = threadIdx.x * 8; i < width; i += THREADS * 8) {
        *reinterpret_cast<uint4*>(out + apart<W>(i)) = *reinterpret_cast<const uint4*>(x + i);
    }
    pad<W>(out, width);
    __syncthreads();
    return out;
}

template <class W>
__device__ __forceinline__ const bf16* normed(W, const float* x, const NormWeight& norm, int width, float eps) {
    bf16* out = reinterpret_cast<bf16*>(dynamic_shared());
    normalise<apart<W>>(x, norm, out, width, eps);
    pad<W>(out, width);
    __syncthreads();
    return out;
}
