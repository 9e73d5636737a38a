// What a warp does in attention.cu: scores and weighted values of tiles of 16 positions, by tensor cores.
#pragma once
#include "common.cuh"

#ifndef HEAD_DIM
#define HEAD_DIM 128
#endif
#ifndef GROUP
#define GROUP 4  // query heads of a block; they share a kv head
#endif

constexpr int THREADS = 128, WARPS = THREADS / 32;
constexpr int SPLIT = 256;              // positions of a split
constexpr int MAX_SPLITS = 256;         // of a row: 65,536 positions
constexpr int TILE = 16;                // positions that a warp takes at a time
constexpr int STEP = WARPS * TILE;      // positions that the block takes at a time
constexpr int TILES = SPLIT / STEP;     // of a warp in a split
constexpr int CHUNKS = HEAD_DIM / 32;   // pieces of 32 channels: of a key, a lane loads 8 channels of each
constexpr int HALVES = HEAD_DIM / 64;   // pieces of 64 channels: of a value, a lane loads 8 channels of each
constexpr float MASKED = -1e30f;        // the score of a position after the row's own
static_assert(GROUP <= 8 && SPLIT % STEP == 0, "the query heads are the first rows of mma's operand A");

// Which lane holds what. Lane 4 g + t loads 16 bytes, eight channels, at a time:
//
//   query     of head g (if there is none, the last one again): channels 8 t to 8 t + 7 of each chunk of 32 channels
//   keys      of positions g and g + 8 of a tile: the same channels
//   values    of positions 2 t, 2 t + 1, 2 t + 8 and 2 t + 9 of a tile: channels 8 g to 8 g + 7 of each half
//
// Queries and keys are the operands A and B of mma (ptx.cuh) as they are loaded. Their channels are permuted, but both
// in the same way, so the dot product is unchanged: linear_few.cu has the drawing. Scores of a tile, scores[i][j]:
//
//   position     8 i + 0, 1   8 i + 2, 3   8 i + 4, 5   8 i + 6, 7
//   head 0       lane 0       lane 1       lane 2       lane 3
//   head 1       lane 4       lane 5       lane 6       lane 7
//   ...
//
// This is again the layout of operand A, so weights go into the product with the values from the registers in which
// the scores were. Rows 0 to 7 of A hold the weights rounded to bf16, and rows 8 to 15, which are free, what the
// rounding has cut off, as bf16 too. The two results are added up. So the weights have 16 bits, for the same number of
// products.

__device__ __forceinline__ void load_query(uint4 (&into)[CHUNKS], const bf16* q) {
    int g = threadIdx.x % 32 / 4, channel = threadIdx.x % 4 * 8;
    const bf16* head = q + min(g, GROUP - 1) * HEAD_DIM + channel;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) into[c] = *reinterpret_cast<const uint4*>(head + 32 * c);
}

// Positions from n on are not read: the last one is read again, and its weight will be zero.
__device__ __forceinline__ void load_keys(uint4 (&into)[2][CHUNKS], const bf16* keys, int first, int n) {
    int g = threadIdx.x % 32 / 4, channel = threadIdx.x % 4 * 8;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const bf16* key = keys + min(first + g + 8 * i, n - 1) * HEAD_DIM + channel;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) into[i][c] = *reinterpret_cast<const uint4*>(key + 32 * c);
    }
}

__device__ __forceinline__ void load_values(uint4 (&into)[4][HALVES], const bf16* values, int first, int n) {
    int channel = threadIdx.x % 32 / 4 * 8, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const bf16* value = values + min(first + 2 * t + i % 2 + i / 2 * 8, n - 1) * HEAD_DIM + channel;
#pragma unroll
        for (int h = 0; h < HALVES; h++) into[i][h] = *reinterpret_cast<const uint4*>(value + 64 * h);
    }
}

// The scores of a tile. Two sums instead of one: a product then waits for every second one before it only.
__device__ __forceinline__ void compute_scores(float (&scores)[2][2], const uint4 (&query)[CHUNKS],
                                               const uint4 (&keys)[2][CHUNKS], int first, int n) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float even[4] = {}, odd[4] = {};
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            mma(even, {query[c].x, 0, query[c].y, 0}, {keys[i][c].x, keys[i][c].y});
            mma(odd, {query[c].z, 0, query[c].w, 0}, {keys[i][c].z, keys[i][c].w});
        }
#pragma unroll
        for (int j = 0; j < 2; j++) {
            bool seen = first + 8 * i + threadIdx.x % 4 * 2 + j < n;
            scores[i][j] = seen ? (even[j] + odd[j]) * rsqrtf(HEAD_DIM) : MASKED;
        }
    }
}

// Turns a warp's scores into weights exp(score - largest); returns their sum.
__device__ __forceinline__ float compute_weights(float (&scores)[TILES][2][2], float& largest) {
    float sum = 0;
    largest = MASKED;
#pragma unroll
    for (int i = 0; i < 4 * TILES; i++) largest = fmaxf(largest, scores[i / 4][i / 2 % 2][i % 2]);
    largest = quad_max(largest);
#pragma unroll
    for (int i = 0; i < 4 * TILES; i++) {
        float& score = scores[i / 4][i / 2 % 2][i % 2];
        score = score == MASKED ? 0 : __expf(score - largest);  // a score that is not a number stays one
        sum += score;
    }
    return quad_sum(sum);
}

// sums[h][j] += the weights of a tile times channels 64 h + j, 64 h + j + 8, 64 h + j + 16, ... of its values. mma
// wants the same channel of two neighbouring positions in one register: the low or the high halves of two loaded words.
__device__ __forceinline__ void add_values(float (&sums)[HALVES][8][4], const float (&weights)[2][2],
                                           const uint4 (&values)[4][HALVES]) {
    unsigned a[4];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        a[2 * i] = pack_two(weights[i][0], weights[i][1]);
        a[2 * i + 1] = pack_two(weights[i][0] - __uint_as_float(a[2 * i] << 16),
                                weights[i][1] - __uint_as_float(a[2 * i] & 0xffff0000u));
    }
#pragma unroll
    for (int h = 0; h < HALVES; h++) {
        unsigned words[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            words[i][0] = values[i][h].x, words[i][1] = values[i][h].y;
            words[i][2] = values[i][h].z, words[i][3] = values[i][h].w;
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            unsigned low[2], high[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                low[i] = __byte_perm(words[2 * i][j], words[2 * i + 1][j], 0x5410);
                high[i] = __byte_perm(words[2 * i][j], words[2 * i + 1][j], 0x7632);
            }
            mma(sums[h][2 * j], a, low);
            mma(sums[h][2 * j + 1], a, high);
        }
    }
}
