// Products of the weight matrices with a few rows, by tensor cores: out = x w^T. w is read once for all rows.
//   w (n_out, width) bf16, or rows of codes (weights.cuh: WEIGHT); x (T, width) bf16; out (T, n_out), any n_out
//   T up to ROWS = 8, 16 or 32; width is a multiple of 64, and of 128 with codes of 4 bits
//   linear.cu holds the naive kernel, linear_steps.cu the steps between it and these.
// Four kernels. As in linear.cu, they differ in what they do with a sum:
//   linear_few, linear_few_float     store it as bf16, or as float (logits)
//   linear_few_add                   add it to a float: the residual stream
//   swiglu_few                       silu(gate sum) * up sum; w13 (2 n_out, width)
// In each mma, tokens are operand A, with 16 rows, and weights are operand B, with 8 columns. So 2 tokens are padded to
// 16 rows. Padding wastes arithmetic, which is idle anyway, but no bandwidth for reading weights, which is scarce.
//
// Launch: a block of 256 threads for 32 outputs (swiglu_few: for 16, each with a gate and an up sum). All warps of a
//         block compute the same outputs; each takes every eighth chunk of 32 channels (64 of codes of 8 bits, 128 of
//         4 bits). Their sums are added in shared memory in the order of the warps, so a row's bits do not depend on
//         other rows.
// Bytes:  2 n_out width for w, as in linear.cu; a half of that for codes of 8 bits, 0.266 times that for 4 bits. For x,
//         each block reads 2 ROWS width from the L2 cache: with bf16, ROWS / 32 times as much as it reads for w.
//         Work: 2 n_out width ROWS.
//
// What limits it with bf16, computed (not measured) for an H200, which reads 4.3 TB/s from memory, that is 33 GB/s
// for each of its 132 SMs, and about 6 TB/s from L2:
//   In flight   A warp has 4 KB in flight, and still 2 KB while it waits for the other 2. A block has 8 warps. At 0.6
//               microseconds a load, an SM needs 20 KB in flight: one block an SM is enough, as wo and w2 have it.
//   L2 cache    It passes on 1 + ROWS / 32 times the bytes of w: 5.4 TB/s for 8 rows, 6.5 for 16, 8.6 for 32. So 16
//               rows take as long as reading w if the L1 cache serves a part of x, and 32 rows up to 1.4 times as long.
//               On an H100, which reads 3.0 TB/s, 32 rows take as long as reading w, too. With more outputs a block, x
//               would be read less often. But wo and w2 have 4,096 outputs: with 64 a block, half of the SMs had none.
//   Arithmetic  At 32 rows of the 8B model 0.48 TFLOP a step, 0.6 ms of tensor cores during 3.5 ms of reading. For 4 KB
//               of weights, a warp issues 74 instructions at 8 rows and 119 at 32 (sm_90). An SM has time for 880.
// With codes, x has as many bytes as before, and w fewer. So on an H200 the L2 cache limits from 8 rows on, and the
// gain over bf16 shrinks with each row. For 4 KB of codes, a warp issues 289 instructions at 8 rows and 351 at 32 with
// Int8, 431 and 510 with Fp8, 602 and 788 with Int4.
#include "weights.cuh"

#ifndef ROWS
#define ROWS 8
#endif

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int BLOCKS = sizeof(WEIGHT) == 1 && ROWS == 32 ? 1 : 2;  // that an SM has registers for
constexpr int PASS = WARPS * CHUNK<WEIGHT>;  // channels that the block multiplies at a time
constexpr int PARTS = EIGHTHS<WEIGHT>;       // of a chunk: 32 channels, two products of 16
constexpr int AHEAD = 2;                     // chunks of weights that a warp has in flight
constexpr int GROUPS = 4;                    // of eight outputs: a warp computes 32
constexpr int EIGHTS = ROWS / 8;             // groups of eight tokens
constexpr int SIXTEENS = (EIGHTS + 1) / 2;   // groups of 16 tokens: the rows of a product
constexpr int TILE = 16;                     // outputs whose sums are added up at a time

// Which lane holds what, with bf16. Lane 4 g + t loads 16 bytes of row g of each group of weights, and 16 bytes of
// token g of each group of tokens. (With codes, this is one of a chunk's two or four parts. Each lane has eight
// channels in it, too, but other ones: weights.cuh says which.)
//
//   channel          0 .. 7     8 .. 15    16 .. 23   24 .. 31
//   row 0, token 0   lane 0     lane 1     lane 2     lane 3
//   row 1, token 1   lane 4     lane 5     lane 6     lane 7
//   ...
//   row 7, token 7   lane 28    lane 29    lane 30    lane 31
//
// In this way weights are operand B of mma (ptx.cuh) as they are loaded, for two products of 16 channels each. So lane
// 4 g + t does not hold the channels that mma expects there:
//
//   register             .x             .y                .z             .w
//   holds channels       8 t, 8 t + 1   8 t + 2, 8 t + 3  8 t + 4, + 5   8 t + 6, + 7
//   stands for channels  2 t, 2 t + 1   2 t + 8, 2 t + 9  2 t, 2 t + 1   2 t + 8, 2 t + 9
//                        of the first product             of the second product
//
// The dot product is unchanged, because weights and tokens are permuted along the channels in the same way. The result
// of 16 tokens and a group of outputs is sums[group][sixteen][0 .. 3]:
//
//   output       0     1     2     3     4     5     6     7
//   token 0    |  lane 0   |  lane 1   |  lane 2   |  lane 3   |   [0], [1]
//   token 1    |  lane 4   |  lane 5   |  lane 6   |  lane 7   |
//   ...
//   token 7    |  lane 28  |  lane 29  |  lane 30  |  lane 31  |
//   token 8    |  lane 0   |  lane 1   |  lane 2   |  lane 3   |   [2], [3]
//   ...
//   token 15   |  lane 28  |  lane 29  |  lane 30  |  lane 31  |

// This lane's 16 bytes of a chunk, of row g of each group
struct Weights {
    uint4 of[GROUPS];
    unsigned scale;  // Int4: that of `WeightRows::scales`
};
struct Tokens {
    uint4 of[EIGHTS];
};
// Where it reads them
struct WeightRows {
    const WEIGHT* of[GROUPS];
    const unsigned* scales;  // of a row of this lane's own: lane 4 g + t has row g of group t
};
struct TokenRows {
    const bf16* of[EIGHTS];
    unsigned mask[EIGHTS];  // all bits of a token that exists, 0 past the last one
};
typedef float Sums[GROUPS][SIXTEENS][4];

// The outputs are the rows from `first` on: 16 of them in each of two tiles. Past the end of the matrix, a row is the
// last one.
__device__ __forceinline__ WeightRows weight_rows(const WEIGHT* first_tile, const WEIGHT* second_tile, int first,
                                                  int second, int n_out, int width) {
    WeightRows rows;
#pragma unroll
    for (int i = 0; i < GROUPS; i++) {
        int row = (i < 2 ? first : second) + threadIdx.x % 32 / 4 + i % 2 * 8;
        const WEIGHT* codes = row_of(i < 2 ? first_tile : second_tile, min(row, n_out - 1), width);
        rows.of[i] = codes + threadIdx.x % 4 * (16 / sizeof(WEIGHT));
        if (GROUPED<WEIGHT> && threadIdx.x % 4 == i) {
            rows.scales = reinterpret_cast<const unsigned*>(scales_of(codes, width));
        }
    }
    return rows;
}

__device__ __forceinline__ TokenRows token_rows(const bf16* x, int n_tokens, int width) {
    TokenRows rows;
#pragma unroll
    for (int i = 0; i < EIGHTS; i++) {
        int token = threadIdx.x % 32 / 4 + i * 8;
        rows.of[i] = x + (size_t)min(token, n_tokens - 1) * width + threadIdx.x % 4 * LANE<WEIGHT>;
        rows.mask[i] = token < n_tokens ? ~0u : 0;
    }
    return rows;
}

// Elements of a row of codes, from a number of channels
__device__ __forceinline__ int elements(int channels) {
    return channels * 16 / PER_PIECE<WEIGHT> / (int)sizeof(WEIGHT);
}

__device__ __forceinline__ Weights load_weights(const WeightRows& rows, int channel) {
    Weights w;
#pragma unroll
    for (int i = 0; i < GROUPS; i++) {
        w.of[i] = load_once(reinterpret_cast<const uint4*>(rows.of[i] + elements(channel)));
    }
    if (GROUPED<WEIGHT>) w.scale = load_once(rows.scales + channel / CHUNK<WEIGHT>);
    return w;
}

__device__ __forceinline__ Tokens load_tokens(const TokenRows& rows, int channel) {
    Tokens x;
#pragma unroll
    for (int i = 0; i < EIGHTS; i++) x.of[i] = *reinterpret_cast<const uint4*>(rows.of[i] + channel);
    return x;
}

__device__ __forceinline__ uint4 masked(uint4 x, unsigned mask) {
    return make_uint4(x.x & mask, x.y & mask, x.z & mask, x.w & mask);
}

// Sums of tokens past the last are not stored, so the result needs no mask. But without it, the compiler copies the
// tokens for each product again.
__device__ __forceinline__ void multiply_eighth(Sums& sums, const Weights& w, int part, const unsigned (&zero)[GROUPS],
                                                const Tokens& x, const unsigned (&mask)[EIGHTS]) {
    uint4 numbers[GROUPS];
#pragma unroll
    for (int group = 0; group < GROUPS; group++) numbers[group] = eighth(WEIGHT(), w.of[group], part, zero[group]);
#pragma unroll
    for (int i = 0; i < SIXTEENS; i++) {
        uint4 low = masked(x.of[2 * i], mask[2 * i]), high = make_uint4(0, 0, 0, 0);
        if (2 * i + 1 < EIGHTS) high = masked(x.of[2 * i + 1], mask[2 * i + 1]);
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            mma(sums[group][i], {low.x, high.x, low.y, high.y}, {numbers[group].x, numbers[group].y});
            mma(sums[group][i], {low.z, high.z, low.w, high.w}, {numbers[group].z, numbers[group].w});
        }
    }
}

// Adds the sums over one chunk, times their scales. Lane 4 g + t holds outputs 2 t and 2 t + 1 of each group of eight.
__device__ __forceinline__ void add_scaled(Sums& sums, const Sums& of_chunk, unsigned scale) {
    int t = threadIdx.x % 4;
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
        float even = scale_of<WEIGHT>(__shfl_sync(ALL_LANES, scale, 8 * t + group));
        float odd = scale_of<WEIGHT>(__shfl_sync(ALL_LANES, scale, 8 * t + 4 + group));
#pragma unroll
        for (int i = 0; i < SIXTEENS; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) sums[group][i][j] += (j % 2 ? odd : even) * of_chunk[group][i][j];
        }
    }
}

// The sums over this warp's channels. Before a part of a chunk is multiplied, the tokens of the next one are asked for.
// After a chunk, the weights of the chunk after the next are loaded into the same registers.
__device__ __forceinline__ void multiply(Sums& sums, WeightRows rows, const bf16* x, int n_tokens, int width) {
    int first = threadIdx.x / 32 * CHUNK<WEIGHT>, left = (width - first + PASS - 1) / PASS;  // chunks of this warp
    Weights weights[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) weights[i] = load_weights(rows, min(first + i * PASS, width - CHUNK<WEIGHT>));
    wait_for_predecessor();
    let_successor_start();
    if (left == 0) return;

    TokenRows token = token_rows(x, n_tokens, width);
#pragma unroll
    for (int i = 0; i < GROUPS; i++) rows.of[i] += elements(first);
    if (GROUPED<WEIGHT>) rows.scales += first / CHUNK<WEIGHT>;
#pragma unroll
    for (int i = 0; i < EIGHTS; i++) token.of[i] += first;
    Tokens tokens[2];
    tokens[0] = load_tokens(token, 0);
#pragma unroll 1
    while (true) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            Sums of_chunk = {};
            unsigned zero[GROUPS] = {};
            if (GROUPED<WEIGHT>) {
#pragma unroll
                for (int group = 0; group < GROUPS; group++) {
                    int holder = threadIdx.x % 32 / 4 * 4 + group;
                    zero[group] = zero_of<WEIGHT>(__shfl_sync(ALL_LANES, weights[i].scale, holder));
                }
            }
#pragma unroll
            for (int part = 0; part < PARTS; part++) {
                int at = i * PARTS + part;
                if (part + 1 < PARTS) {
                    tokens[(at + 1) % 2] = load_tokens(token, i * PASS + (part + 1) * NEXT<WEIGHT>);
                } else if (left > 1) {
                    tokens[(at + 1) % 2] = load_tokens(token, (i + 1) * PASS);
                }
                multiply_eighth(GROUPED<WEIGHT> ? of_chunk : sums, weights[i], part, zero, tokens[at % 2], token.mask);
            }
            if (GROUPED<WEIGHT>) add_scaled(sums, of_chunk, weights[i].scale);
            if (left > AHEAD) weights[i] = load_weights(rows, (i + AHEAD) * PASS);
            if (--left == 0) return;  // this branch keeps the compiler from mixing up the chunks
        }
#pragma unroll
        for (int i = 0; i < GROUPS; i++) rows.of[i] += elements(AHEAD * PASS);
        if (GROUPED<WEIGHT>) rows.scales += AHEAD * WARPS;
#pragma unroll
        for (int i = 0; i < EIGHTS; i++) token.of[i] += AHEAD * PASS;
    }
}

// The scale of a row, if it has a single one. A thread only stores results of one output of a tile.
__device__ __forceinline__ float row_scale(const WEIGHT* matrix, int first, int n_out, int width) {
    if (GROUPED<WEIGHT> || sizeof(WEIGHT) > 1) return 1;
    const WEIGHT* codes = row_of(matrix, min(first + (int)threadIdx.x % TILE, n_out - 1), width);
    return __uint_as_float(load_once(reinterpret_cast<const unsigned*>(scales_of(codes, width))));
}

// A thread stores PER_THREAD of a tile's 16 * ROWS results. Result i is output i % 16 of token i / 16.
constexpr int PER_THREAD = (TILE * ROWS + THREADS - 1) / THREADS;

// Adds up the sums of all warps for one tile. Every thread of the block calls it. The array is here and not in
// `product`, because the tests fill shared arrays with NaN only outside of templates.
__device__ __forceinline__ void add_up(float (&total)[PER_THREAD], const Sums& sums, int tile) {
    __shared__ float part[WARPS][ROWS][TILE];
    int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2 * EIGHTS; i++) {
        int group = i / EIGHTS, eight = i % EIGHTS;  // of outputs, of tokens
        const float* from = sums[2 * tile + group][eight / 2] + eight % 2 * 2;
        part[warp][eight * 8 + g][group * 8 + 2 * t] = from[0];
        part[warp][eight * 8 + g][group * 8 + 2 * t + 1] = from[1];
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
    __syncthreads();  // before the next call writes `part`
}

// Calls store(index, sum) for each result of this block's two tiles; index is the element of out (T, n_out).
template <class Store>
__device__ __forceinline__ void product(const WEIGHT* w, const bf16* x, int n_out, int width, int n_tokens,
                                        Store store) {
    int first = blockIdx.x * 2 * TILE;
    const float scales[2] = {row_scale(w, first, n_out, width), row_scale(w, first + TILE, n_out, width)};
    Sums sums = {};
    multiply(sums, weight_rows(w, w, first, first + TILE, n_out, width), x, n_tokens, width);
#pragma unroll
    for (int tile = 0; tile < 2; tile++) {
        float total[PER_THREAD];
        add_up(total, sums, tile);
#pragma unroll
        for (int j = 0; j < PER_THREAD; j++) {
            int i = threadIdx.x + j * THREADS, token = i / TILE, output = first + tile * TILE + i % TILE;
            if (token < n_tokens && output < n_out) store((size_t)token * n_out + output, scales[tile] * total[j]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    linear_few(const WEIGHT* w, const bf16* x, bf16* out, int n_out, int width, int n_tokens) {
    product(w, x, n_out, width, n_tokens, [=](size_t at, float sum) { out[at] = __float2bfloat16(sum); });
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    linear_few_float(const WEIGHT* w, const bf16* x, float* out, int n_out, int width, int n_tokens) {
    product(w, x, n_out, width, n_tokens, [=](size_t at, float sum) { out[at] = sum; });
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    linear_few_add(const WEIGHT* w, const bf16* x, float* out, int n_out, int width, int n_tokens) {
    product(w, x, n_out, width, n_tokens, [=](size_t at, float sum) { out[at] += sum; });
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    swiglu_few(const WEIGHT* w13, const bf16* x, bf16* out, int n_out, int width, int n_tokens) {
    int first = blockIdx.x * TILE;
    Sums sums = {};
    const WEIGHT* w3 = row_of(w13, n_out, width);
    float gate_scale = row_scale(w13, first, n_out, width), up_scale = row_scale(w3, first, n_out, width);
    multiply(sums, weight_rows(w13, w3, first, first, n_out, width), x, n_tokens, width);
    float gate[PER_THREAD], up[PER_THREAD];
    add_up(gate, sums, 0);
    add_up(up, sums, 1);
#pragma unroll
    for (int j = 0; j < PER_THREAD; j++) {
        int i = threadIdx.x + j * THREADS, token = i / TILE, output = first + i % TILE;
        if (token < n_tokens && output < n_out) {
            out[(size_t)token * n_out + output] = __float2bfloat16(silu(gate_scale * gate[j]) * (up_scale * up[j]));
        }
    }
}
