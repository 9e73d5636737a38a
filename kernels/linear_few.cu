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
// Bytes:  2 n_out width for w, as in linear.cu. For x, each block reads 2 ROWS width from the L2 cache: ROWS / 32 times
//         as much as it reads for w. Work: 2 n_out width ROWS.
//
// What limits it, computed (not measured) for an H200, which reads 4.3 TB/s from memory, that is 33 GB/s for each of
// its 132 SMs, and about 6 TB/s from L2:
//   In flight   A warp has 4 KB in flight, and still 2 KB while it waits for the other 2. A block has 8 warps. At 0.6
//               microseconds a load, an SM needs 20 KB in flight: one block an SM is enough, as wo and w2 have it.
//   L2 cache    It passes on 1 + ROWS / 32 times the bytes of w: 5.4 TB/s for 8 rows, 6.5 for 16, 8.6 for 32. So 16
//               rows take as long as reading w if the L1 cache serves a part of x, and 32 rows up to 1.4 times as long.
//               On an H100, which reads 3.0 TB/s, 32 rows take as long as reading w, too. With more outputs a block, x
//               would be read less often. But wo and w2 have 4,096 outputs: with 64 a block, half of the SMs had none.
//   Arithmetic  At 32 rows of the 8B model 0.48 TFLOP a step, 0.6 ms of tensor cores during 3.5 ms of reading.
#include "common.cuh"

#ifndef ROWS
#define ROWS 8
#endif

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int CHUNK = 32;             // channels that a warp multiplies at a time: two products of 16
constexpr int COLUMNS = ROWS / 8;     // blocks of eight tokens
constexpr int TILE = 16;              // outputs of a product; a warp has two tiles
constexpr int PASS = WARPS * CHUNK;   // channels that the block multiplies at a time
constexpr int AHEAD = 2;              // chunks of weights that a warp has in flight

// The weight rows that this lane reads: rows g and g + 8 of each of the two tiles. Past the end of w it reads the last
// row again, whose sums are not stored.
struct WeightRows {
    const bf16* row[4];
};

// What a lane loads of a chunk: 16 bytes of each of its rows
struct Chunk {
    uint4 row[4];
};

__device__ __forceinline__ WeightRows weight_rows(const bf16* first_tile, const bf16* second_tile, int first,
                                                  int second, int n_out, int width) {
    WeightRows r;
    int g = threadIdx.x % 32 / 4, channel = threadIdx.x % 4 * 8;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int output = (i < 2 ? first : second) + g + i % 2 * 8;
        const bf16* w = i < 2 ? first_tile : second_tile;
        r.row[i] = w + (size_t)min(output, n_out - 1) * width + channel;
    }
    return r;
}

// Past the end of a row, weights are those of the last chunk, and tokens are 0.
// Trap: with a condition around this load, the compiler loads into other registers and copies them, and the copy waits
// for the load.
__device__ __forceinline__ Chunk load_chunk(const WeightRows& rows, int channel, int width) {
    Chunk c;
    channel = min(channel, width - CHUNK);
#pragma unroll
    for (int i = 0; i < 4; i++) c.row[i] = load_once(reinterpret_cast<const uint4*>(rows.row[i] + channel));
    return c;
}

// 16 bytes of token g of a column
__device__ __forceinline__ uint4 load_token(const bf16* x, int column, int channel, int n_tokens, int width) {
    int token = column * 8 + threadIdx.x % 32 / 4;
    const bf16* from = x + (size_t)token * width + channel + threadIdx.x % 4 * 8;
    bool valid = token < n_tokens && channel < width;
    return valid ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
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

// Adds the products of this warp's next AHEAD chunks to the sums, and loads the chunks after them if there are MORE.
template <bool MORE>
__device__ __forceinline__ void multiply_chunks(float (&sums)[2][COLUMNS][4], Chunk (&loaded)[AHEAD],
                                                const WeightRows& rows, const bf16* x, int channel, int n_tokens,
                                                int width) {
#pragma unroll
    for (int i = 0; i < AHEAD; i++, channel += PASS) {
        uint4 token[COLUMNS];
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) token[j] = load_token(x, j, channel, n_tokens, width);
        unsigned a[2][2][4];  // operand A: (tile, first or second product, register)
#pragma unroll
        for (int tile = 0; tile < 2; tile++) {
            uint4 low = loaded[i].row[2 * tile], high = loaded[i].row[2 * tile + 1];
            a[tile][0][0] = low.x, a[tile][0][1] = high.x, a[tile][0][2] = low.y, a[tile][0][3] = high.y;
            a[tile][1][0] = low.z, a[tile][1][1] = high.z, a[tile][1][2] = low.w, a[tile][1][3] = high.w;
        }
        if (MORE) loaded[i] = load_chunk(rows, channel + AHEAD * PASS, width);
#pragma unroll
        for (int column = 0; column < COLUMNS; column++) {
#pragma unroll
            for (int tile = 0; tile < 2; tile++) {
                mma(sums[tile][column], a[tile][0], {token[column].x, token[column].y});
                mma(sums[tile][column], a[tile][1], {token[column].z, token[column].w});
            }
        }
    }
}

// sums[tile][column] (16, 8): the sums over this warp's channels
__device__ __forceinline__ void multiply(float (&sums)[2][COLUMNS][4], const WeightRows& rows, const bf16* x,
                                         int n_tokens, int width) {
    int channel = threadIdx.x / 32 * CHUNK;
    Chunk loaded[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) loaded[i] = load_chunk(rows, channel + i * PASS, width);
    wait_for_predecessor();
    let_successor_start();
    for (; channel + AHEAD * PASS < width; channel += AHEAD * PASS) {
        multiply_chunks<true>(sums, loaded, rows, x, channel, n_tokens, width);
    }
    multiply_chunks<false>(sums, loaded, rows, x, channel, n_tokens, width);
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
    linear_few(const bf16* w, const bf16* x, bf16* out, int n_out, int width, int n_tokens) {
    product(w, x, n_out, width, n_tokens, [=](size_t at, float sum) { out[at] = __float2bfloat16(sum); });
}

extern "C" __global__ void __launch_bounds__(THREADS)
    linear_few_float(const bf16* w, const bf16* x, float* out, int n_out, int width, int n_tokens) {
    product(w, x, n_out, width, n_tokens, [=](size_t at, float sum) { out[at] = sum; });
}

extern "C" __global__ void __launch_bounds__(THREADS)
    linear_few_add(const bf16* w, const bf16* x, float* out, int n_out, int width, int n_tokens) {
    product(w, x, n_out, width, n_tokens, [=](size_t at, float sum) { out[at] += sum; });
}

extern "C" __global__ void __launch_bounds__(THREADS)
    swiglu_few(const bf16* w13, const bf16* x, bf16* out, int n_out, int width, int n_tokens) {
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
