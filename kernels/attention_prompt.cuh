// What the two kernels for prompts share, attention_prompt.cu and attention_wgmma.cu: which rows a block computes, and
// online softmax in registers.
//
// Which lane holds what. A warp has a band of 16 rows, and their scores in blocks of 8 keys. In each block j, lane
// 4 g + t holds four scores, weights[j][0 .. 3]: two neighbouring keys for row g, then for row g + 8.
//
//   key of block j   0     1     2     3     4     5     6     7
//   row 0          |  lane 0   |  lane 1   |  lane 2   |  lane 3   |   [j][0], [j][1]
//   row 1          |  lane 4   |  lane 5   |  lane 6   |  lane 7   |
//   ...
//   row 7          |  lane 28  |  lane 29  |  lane 30  |  lane 31  |
//   row 8          |  lane 0   |  lane 1   |  lane 2   |  lane 3   |   [j][2], [j][3]
//   ...
//   row 15         |  lane 28  |  lane 29  |  lane 30  |  lane 31  |
//
// So the four lanes 4 g to 4 g + 3 share rows g and g + 8; quad_max and quad_sum combine their numbers. Two blocks side
// by side, k and k + 1, have the layout of a tensor core's operand A, 16 rows of 16 keys. So the weights go into the
// product with the values without leaving their registers:
//
//                   keys of block k                  keys of block k + 1
//   rows 0 to 7     a[0] = weights[k][0], [1]        a[2] = weights[k + 1][0], [1]
//   rows 8 to 15    a[1] = weights[k][2], [3]        a[3] = weights[k + 1][2], [3]
//
// The result of that product, partial_out, has the layout of the first drawing, with channels in place of keys.
#pragma once
#include "common.cuh"

#ifndef HEAD_DIM
#define HEAD_DIM 128
#endif

constexpr int CHANNEL_BLOCKS = HEAD_DIM / 8;
constexpr float MASKED = -1e30f;  // the score of a key after the row's own position
// exp(score / sqrt(head_dim)) = exp2(score * SCALE). A GPU has an instruction for exp2, and multiplies by SCALE in the
// instruction that subtracts the maximum.
constexpr float SCALE = 1.44269504f * (HEAD_DIM == 128 ? 0.0883883476f : 0.125f);

// What a block computes: one head of a tile of rows
struct Tile {
    int n_rows, first_position;
    size_t row_stride, rows_at;  // elements of q and out: from one row to the next, and in front of the first row
    size_t keys_at;              // elements of the cache in front of this head's keys
};

// tiles (n_tiles, 4): first row, number of rows, position of the first row, slot
__device__ __forceinline__ Tile tile_of_block(const int* tiles, int n_heads, int n_kv_heads, int max_len) {
    const int* tile = tiles + 4 * blockIdx.y;
    int first_row = tile[0], slot = tile[3], head = blockIdx.x;
    size_t row_stride = (size_t)n_heads * HEAD_DIM, rows_at = ((size_t)first_row * n_heads + head) * HEAD_DIM;
    size_t keys_at = ((size_t)slot * n_kv_heads + head / (n_heads / n_kv_heads)) * max_len * HEAD_DIM;
    return {tile[1], tile[2], row_stride, rows_at, keys_at};
}

// first_key: this lane's first key of block 0; position: the position of this lane's first row.
template <int BLOCKS>
__device__ __forceinline__ void mask(float (&scores)[BLOCKS][4], int first_key, int position) {
#pragma unroll
    for (int j = 0; j < BLOCKS; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (first_key + j * 8 + i % 2 > position + i / 2 * 8) scores[j][i] = MASKED;
    }
}

// Turns scores into weights, and updates the running maximum and sum of this lane's two rows. All that was summed
// before has to be multiplied by `shrink`, as if the new maximum had been known from the beginning.
template <int BLOCKS>
__device__ __forceinline__ void update_softmax(float (&weights)[BLOCKS][4], float (&largest)[2], float (&sums)[2],
                                               float (&shrink)[2]) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float before = largest[r];
#pragma unroll
        for (int j = 0; j < BLOCKS; j++)
            largest[r] = fmaxf(largest[r], fmaxf(weights[j][2 * r], weights[j][2 * r + 1]));
        largest[r] = quad_max(largest[r]);
        shrink[r] = exp2f((before - largest[r]) * SCALE);
        sums[r] *= shrink[r];
        float scaled_largest = largest[r] * SCALE;
#pragma unroll
        for (int j = 0; j < BLOCKS; j++) {
#pragma unroll
            for (int i = 2 * r; i < 2 * r + 2; i++) {
                weights[j][i] = exp2f(weights[j][i] * SCALE - scaled_largest);
                sums[r] += weights[j][i];
            }
        }
    }
}

__device__ __forceinline__ void rescale(float (&partial_out)[CHANNEL_BLOCKS][4], const float (&shrink)[2]) {
#pragma unroll
    for (int j = 0; j < CHANNEL_BLOCKS; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) partial_out[j][i] *= shrink[i / 2];
    }
}

// Operand A, 16 rows of 16 keys, from the weights of blocks k and k + 1.
template <int BLOCKS>
__device__ __forceinline__ void pack_weights(unsigned (&a)[4], const float (&weights)[BLOCKS][4], int k) {
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = pack_two(weights[k + i / 2][i % 2 * 2], weights[k + i / 2][i % 2 * 2 + 1]);
}

// out begins at this lane's column in the tile's first row; row: this lane's first row.
__device__ __forceinline__ void store(bf16* out, const float (&partial_out)[CHANNEL_BLOCKS][4],
                                      const float (&sums)[2], size_t row_stride, int row, int n_rows) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float scale = 1 / quad_sum(sums[r]);
        if (row + 8 * r >= n_rows) continue;
        bf16* to = out + (row + 8 * r) * row_stride;
#pragma unroll
        for (int j = 0; j < CHANNEL_BLOCKS; j++) {
            unsigned pair = pack_two(partial_out[j][2 * r] * scale, partial_out[j][2 * r + 1] * scale);
            *reinterpret_cast<unsigned*>(to + j * 8) = pair;
        }
    }
}
