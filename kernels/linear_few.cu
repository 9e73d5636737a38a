// Products of the weight matrices with a few rows, by tensor cores: out = x w^T. w is read once for all rows.
//   w (n_out, width) bf16, x (T, width) bf16, out (T, n_out); T up to ROWS = 8, 16, 32 or 64; width is a multiple of
//   64, any n_out. linear.cu holds the naive kernel, linear_steps.cu the steps between it and these.
// Four kernels. As in linear.cu, they differ in what they do with a sum:
//   linear_few, linear_few_float     store it as bf16, or as float (logits)
//   linear_few_add                   add it to a float: the residual stream
//   swiglu_few                       silu(gate sum) * up sum; w13 (2 n_out, width)
// In each mma, weights are operand A, with 16 rows, and tokens are operand B, with 8 columns. So 2 tokens are padded to
// 8 columns. Padding wastes arithmetic, which is idle anyway, but no bandwidth for reading weights, which is scarce.
//
// Launch: a block of 256 threads for 32 outputs (swiglu_few: for 16, each with a gate and an up sum). All warps of a
//         block compute the same outputs; each takes every eighth chunk of 32 channels. Their sums are added in shared
//         memory in the order of the warps, so a row's bits do not depend on other rows.
// Bytes:  2 n_out width for w, as in linear.cu, with 32 KB in flight in each block. For x, each block reads 2 ROWS
//         width from the L2 cache, ROWS / 32 times as much as it reads for w. Work: 2 n_out width ROWS. At 64 rows of
//         the 8B model that is 0.96 TFLOP a step, 1.2 ms of tensor cores during 3.5 ms of reading memory.
#include "common.cuh"

#ifndef ROWS
#define ROWS 8
#endif

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int CHUNK = 32;             // channels that a warp multiplies at a time: two products of 16
constexpr int COLUMNS = ROWS / 8;     // blocks of eight tokens
constexpr int TILE = 16;              // outputs of a product; a warp has two tiles
constexpr int AHEAD = 2;              // chunks of weights in flight

// The weight rows that this lane reads: rows g and g + 8 of each of the two tiles; null past the end of w.
struct WeightRows {
    const bf16* row[4];
};

__device__ __forceinline__ WeightRows weight_rows(const bf16* first_tile, const bf16* second_tile, int first,
                                                  int second, int n_out, int width) {
    WeightRows r;
    int g = threadIdx.x % 32 / 4, channel = threadIdx.x % 4 * 8;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int output = (i < 2 ? first : second) + g + i % 2 * 8;
        const bf16* w = i < 2 ? first_tile : second_tile;
        r.row[i] = output < n_out ? w + (size_t)output * width + channel : nullptr;
    }
    return r;
}

__device__ __forceinline__ void load_weights(uint4 (&into)[4], const WeightRows& rows, int channel, int width) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        bool valid = rows.row[i] && channel < width;
        into[i] = valid ? load_once(reinterpret_cast<const uint4*>(rows.row[i] + channel)) : make_uint4(0, 0, 0, 0);
    }
}

__device__ __forceinline__ uint4 load_token(const bf16* x, int token, int channel, int n_tokens, int width) {
    const bf16* from = x + (size_t)token * width + channel + threadIdx.x % 4 * 8;
    return token < n_tokens ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
}

// Which lane holds what. A chunk has 32 channels. Each lane loads 16 bytes of two weight rows of a tile, and 16 bytes
// of one token of a column:
//
//   channel              0 .. 7     8 .. 15    16 .. 23   24 .. 31
//   row 0, 8, token 0    lane 0     lane 1     lane 2     lane 3
//   row 1, 9, token 1    lane 4     lane 5     lane 6     lane 7
//   ...
//   row 7, 15, token 7   lane 28    lane 29    lane 30    lane 31
//
// These registers are the operands of mma (ptx.cuh) as they are, for two products of 16 channels each. So lane 4 g + t
// does not hold the channels that mma expects there:
//
//   register             .x             .y                .z             .w
//   holds channels       8 t, 8 t + 1   8 t + 2, 8 t + 3  8 t + 4, + 5   8 t + 6, + 7
//   stands for channels  2 t, 2 t + 1   2 t + 8, 2 t + 9  2 t, 2 t + 1   2 t + 8, 2 t + 9
//                        of the first product             of the second product
//
// The dot product is unchanged, because weights and tokens are permuted along the channels in the same way. The result
// of one tile and one column is sums[tile][column][0 .. 3]:
//
//   token        0     1     2     3     4     5     6     7
//   output 0   |  lane 0   |  lane 1   |  lane 2   |  lane 3   |   [0], [1]
//   output 1   |  lane 4   |  lane 5   |  lane 6   |  lane 7   |
//   ...
//   output 7   |  lane 28  |  lane 29  |  lane 30  |  lane 31  |
//   output 8   |  lane 0   |  lane 1   |  lane 2   |  lane 3   |   [2], [3]
//   ...
//   output 15  |  lane 28  |  lane 29  |  lane 30  |  lane 31  |

// sums[tile][column] (16, 8): the sums over this warp's channels
__device__ __forceinline__ void multiply(float (&sums)[2][COLUMNS][4], const WeightRows& rows, const bf16* x,
                                         int n_tokens, int width) {
    int first = threadIdx.x / 32 * CHUNK, g = threadIdx.x % 32 / 4;
    uint4 loaded[AHEAD][4];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) load_weights(loaded[i], rows, first + i * WARPS * CHUNK, width);
    wait_for_predecessor();
    let_successor_start();

    for (int channel = first; channel < width;) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++, channel += WARPS * CHUNK) {
            if (channel >= width) break;
            unsigned a[2][2][4];  // operand A: (tile, first or second product, register)
#pragma unroll
            for (int tile = 0; tile < 2; tile++) {
                uint4 low = loaded[i][2 * tile], high = loaded[i][2 * tile + 1];
                a[tile][0][0] = low.x, a[tile][0][1] = high.x, a[tile][0][2] = low.y, a[tile][0][3] = high.y;
                a[tile][1][0] = low.z, a[tile][1][1] = high.z, a[tile][1][2] = low.w, a[tile][1][3] = high.w;
            }
            load_weights(loaded[i], rows, channel + AHEAD * WARPS * CHUNK, width);
#pragma unroll
            for (int column = 0; column < COLUMNS; column++) {
                uint4 token = load_token(x, column * 8 + g, channel, n_tokens, width);
#pragma unroll
                for (int tile = 0; tile < 2; tile++) {
                    mma(sums[tile][column], a[tile][0], {token.x, token.y});
                    mma(sums[tile][column], a[tile][1], {token.z, token.w});
                }
            }
        }
    }
}

// A thread stores PER_THREAD of a tile's 16 * ROWS results. Result i is output i % 16 of token i / 16.
constexpr int PER_THREAD = (TILE * ROWS + THREADS - 1) / THREADS;

// Adds up the sums of all warps for one tile. Every thread of the block calls it; `part` can be reused afterwards.
__device__ __forceinline__ void add_up(float (&total)[PER_THREAD], const float (&sums)[COLUMNS][4],
                                       float (&part)[WARPS][ROWS][TILE]) {
    int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
        for (int i = 0; i < 4; i++) part[warp][column * 8 + 2 * t + i % 2][g + i / 2 * 8] = sums[column][i];
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < PER_THREAD; j++) {
        int i = threadIdx.x + j * THREADS;
        total[j] = 0;
        if (i < TILE * ROWS) {
#pragma unroll
            for (int w = 0; w < WARPS; w++) total[j] += part[w][i / TILE][i % TILE];
        }
    }
    __syncthreads();
}

// Calls store(index, sum) for each result of this block's two tiles; index is the element of out (T, n_out).
template <class Store>
__device__ __forceinline__ void product(const bf16* w, const bf16* x, int n_out, int width, int n_tokens, Store store) {
    __shared__ float part[WARPS][ROWS][TILE];
    int first = blockIdx.x * 2 * TILE;
    float sums[2][COLUMNS][4] = {};
    multiply(sums, weight_rows(w, w, first, first + TILE, n_out, width), x, n_tokens, width);
#pragma unroll
    for (int tile = 0; tile < 2; tile++) {
        float total[PER_THREAD];
        add_up(total, sums[tile], part);
#pragma unroll
        for (int j = 0; j < PER_THREAD; j++) {
            int i = threadIdx.x + j * THREADS, token = i / TILE, output = first + tile * TILE + i % TILE;
            if (token < n_tokens && output < n_out) store((size_t)token * n_out + output, total[j]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    linear_few(const bf16* __restrict__ w, const bf16* x, bf16* out, int n_out, int width, int n_tokens) {
    product(w, x, n_out, width, n_tokens, [=](size_t at, float sum) { out[at] = __float2bfloat16(sum); });
}

extern "C" __global__ void __launch_bounds__(THREADS)
    linear_few_float(const bf16* __restrict__ w, const bf16* x, float* out, int n_out, int width, int n_tokens) {
    product(w, x, n_out, width, n_tokens, [=](size_t at, float sum) { out[at] = sum; });
}

extern "C" __global__ void __launch_bounds__(THREADS)
    linear_few_add(const bf16* __restrict__ w, const bf16* x, float* out, int n_out, int width, int n_tokens) {
    product(w, x, n_out, width, n_tokens, [=](size_t at, float sum) { out[at] += sum; });
}

extern "C" __global__ void __launch_bounds__(THREADS)
    swiglu_few(const bf16* __restrict__ w13, const bf16* x, bf16* out, int n_out, int width, int n_tokens) {
    __shared__ float part[WARPS][ROWS][TILE];
    int first = blockIdx.x * TILE;
    float sums[2][COLUMNS][4] = {};
    const bf16* w3 = w13 + (size_t)n_out * width;
    multiply(sums, weight_rows(w13, w3, first, first, n_out, width), x, n_tokens, width);
    float gate[PER_THREAD], up[PER_THREAD];
    add_up(gate, sums[0], part);
    add_up(up, sums[1], part);
#pragma unroll
    for (int j = 0; j < PER_THREAD; j++) {
        int i = threadIdx.x + j * THREADS, token = i / TILE, output = first + i % TILE;
        if (token < n_tokens && output < n_out) {
            out[(size_t)token * n_out + output] = __float2bfloat16(silu(gate[j]) * up[j]);
        }
    }
}
