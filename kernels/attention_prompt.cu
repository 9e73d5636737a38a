// Attention of the many rows of a prompt (prefill), by tensor cores (flash attention, Dao et al. 2022):
// softmax(q k^T / sqrt(head_dim)) v, where a row attends to the positions from 0 to its own. The arrays q, k_cache,
// v_cache and out are those of attention.cu, which also holds the naive kernel. attention_steps.cu holds the steps
// between the two.
//   tiles (n_tiles, 4): up to 64 neighbouring rows of one sequence: first row, number of rows, position of the first
//   row, slot of the cache. Prompts of any length, starting at any position, are cut into such tiles.
// A block computes one head of one tile. It takes 64 keys and values at a time, and loads the next 64 while it
// multiplies the current ones. Scores and weights stay in registers; softmax is online, with a running maximum and a
// running sum.
//
// Launch: (n_tiles, n_heads) blocks of 128 threads; a warp has 16 rows. 85 KB of dynamic shared memory at head_dim 128.
// Work:   4 head_dim FLOPs for each head and pair of positions: 17.6 TFLOP for a prompt of 8,192 tokens in the 8B
//         model. That takes 70 ms at 250 TFLOP/s, which mma.sync can reach on an H200. Bytes do not matter: K and V
//         come from the L2 cache.
#include "common.cuh"

#ifndef HEAD_DIM
#define HEAD_DIM 128
#endif

constexpr int THREADS = 128, TILE = 64;  // TILE: rows of a block, and keys at a time
constexpr int STRIDE = HEAD_DIM + 8;     // of a row in shared memory; puts the 8 rows of a matrix into different banks
constexpr int KEY_BLOCKS = TILE / 8, CHANNEL_BLOCKS = HEAD_DIM / 8;  // blocks of 8, the width of mma's result
constexpr float MASKED = -1e30f;         // the score of a key after the row's own position

// Copies rows 0 to n - 1 of a tile of 64 rows; the other rows become zero.
__device__ __forceinline__ void copy_tile(bf16* tile, const bf16* from, size_t row_stride, int n) {
    for (int i = threadIdx.x; i < TILE * HEAD_DIM / 8; i += THREADS) {
        int row = i / (HEAD_DIM / 8), channel = i % (HEAD_DIM / 8) * 8;
        bool valid = row < n;
        copy_async(tile + row * STRIDE + channel, valid ? from + row * row_stride + channel : from, valid);
    }
}

// Which lane holds what. A warp has 16 rows of the tile, and their scores for 64 keys, in 8 blocks of 8 keys. In each
// block j, lane 4 g + t holds four scores, weights[j][0 .. 3]: two neighbouring keys for row g, then for row g + 8.
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
// So the four lanes 4 g to 4 g + 3 share rows g and g + 8; row_max and row_sum combine their numbers. Two neighbouring
// blocks, k and k + 1, have the layout of mma's operand A (ptx.cuh), 16 rows of 16 keys. So the weights go into the
// product with the values without leaving their registers:
//
//                   keys of block k                  keys of block k + 1
//   rows 0 to 7     a[0] = weights[k][0], [1]        a[2] = weights[k + 1][0], [1]
//   rows 8 to 15    a[1] = weights[k][2], [3]        a[3] = weights[k + 1][2], [3]
//
// The result of that product, partial_out, has the layout of the first drawing, with channels in place of keys.

// The maximum, or the sum, over the four lanes that share a row.
__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}
__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// scores (16, 64) += the warp's 16 queries times 64 keys
__device__ __forceinline__ void multiply_keys(float (&scores)[KEY_BLOCKS][4], const bf16* queries, const bf16* keys) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int c = 0; c < HEAD_DIM; c += 16) {
        unsigned a[4], b[4];
        load_matrices(a, queries + lane % 16 * STRIDE + c + lane / 16 * 8);
#pragma unroll
        for (int j = 0; j < KEY_BLOCKS; j += 2) {  // keys (64, HEAD_DIM) is operand B transposed
            load_matrices(b, keys + (j * 8 + lane / 16 * 8 + lane % 8) * STRIDE + c + lane / 8 % 2 * 8);
            mma(scores[j], a, {b[0], b[1]});
            mma(scores[j + 1], a, {b[2], b[3]});
        }
    }
}

// partial_out (16, head_dim) += weights (16, 64) times 64 values
__device__ __forceinline__ void add_values(float (&partial_out)[CHANNEL_BLOCKS][4],
                                           const float (&weights)[KEY_BLOCKS][4], const bf16* values) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < KEY_BLOCKS; k += 2) {
        unsigned a[4], b[4];  // a: the layout that the drawing shows
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = pack_two(weights[k + i / 2][i % 2 * 2], weights[k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (int j = 0; j < CHANNEL_BLOCKS; j += 2) {
            load_matrices_transposed(b, values + (k * 8 + lane % 16) * STRIDE + j * 8 + lane / 16 * 8);
            mma(partial_out[j], a, {b[0], b[1]});
            mma(partial_out[j + 1], a, {b[2], b[3]});
        }
    }
}

// Turns scores into weights, and updates the running maximum and sum of this lane's two rows. partial_out is rescaled
// to the new maximum. first_key: this lane's first key of block 0; position: the position of this lane's first row.
__device__ __forceinline__ void update_softmax(float (&weights)[KEY_BLOCKS][4],
                                               float (&partial_out)[CHANNEL_BLOCKS][4], float (&largest)[2],
                                               float (&sums)[2], int first_key, int position) {
    float before[2] = {largest[0], largest[1]};
#pragma unroll
    for (int j = 0; j < KEY_BLOCKS; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            bool seen = first_key + j * 8 + i % 2 <= position + i / 2 * 8;
            weights[j][i] = seen ? weights[j][i] * rsqrtf(HEAD_DIM) : MASKED;
            largest[i / 2] = fmaxf(largest[i / 2], weights[j][i]);
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {  // rescale all that was summed so far to the new maximum
        largest[r] = row_max(largest[r]);
        float scale = __expf(before[r] - largest[r]);
        sums[r] *= scale;
#pragma unroll
        for (int j = 0; j < CHANNEL_BLOCKS; j++) {
            partial_out[j][2 * r] *= scale;
            partial_out[j][2 * r + 1] *= scale;
        }
    }
#pragma unroll
    for (int j = 0; j < KEY_BLOCKS; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            weights[j][i] = __expf(weights[j][i] - largest[i / 2]);
            sums[i / 2] += weights[j][i];
        }
    }
}

// out begins at this lane's column in the tile's first row.
__device__ __forceinline__ void store(bf16* out, const float (&partial_out)[CHANNEL_BLOCKS][4],
                                      const float (&sums)[2], size_t row_stride, int row, int n_rows) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float scale = 1 / row_sum(sums[r]);
        if (row + 8 * r >= n_rows) continue;
        bf16* to = out + (row + 8 * r) * row_stride;
#pragma unroll
        for (int j = 0; j < CHANNEL_BLOCKS; j++) {
            unsigned pair = pack_two(partial_out[j][2 * r] * scale, partial_out[j][2 * r + 1] * scale);
            *reinterpret_cast<unsigned*>(to + j * 8) = pair;
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    attention_prompt(const bf16* q, const bf16* k_cache, const bf16* v_cache, const int* tiles, bf16* out, int n_heads,
                     int n_kv_heads, int max_len) {
    bf16* queries = reinterpret_cast<bf16*>(dynamic_shared());  // (64, STRIDE)
    bf16* keys = queries + TILE * STRIDE;                       // (2, 64, STRIDE): the current 64 and the next
    bf16* values = keys + 2 * TILE * STRIDE;                    // (2, 64, STRIDE)
    wait_for_predecessor();
    let_successor_start();
    const int* tile = tiles + 4 * blockIdx.x;
    int first_row = tile[0], n_rows = tile[1], first_position = tile[2], slot = tile[3], head = blockIdx.y;
    size_t row_stride = (size_t)n_heads * HEAD_DIM, rows_at = ((size_t)first_row * n_heads + head) * HEAD_DIM;
    size_t cache = ((size_t)slot * n_kv_heads + head / (n_heads / n_kv_heads)) * max_len * HEAD_DIM;
    int n_keys = first_position + n_rows;

    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int row = warp * 16 + lane / 4;  // this lane has results of this row of the tile and of row + 8,
    int column = lane % 4 * 2;       // two neighbouring columns of each block of eight
    float partial_out[CHANNEL_BLOCKS][4] = {};
    float largest[2] = {MASKED, MASKED}, sums[2] = {};

    copy_tile(queries, q + rows_at, row_stride, n_rows);
    copy_tile(keys, k_cache + cache, HEAD_DIM, n_keys);
    copy_tile(values, v_cache + cache, HEAD_DIM, n_keys);
    commit_copies();
    for (int first_key = 0, now = 0; first_key < n_keys; first_key += TILE, now ^= 1) {
        int next_key = first_key + TILE, next = now ^ 1;
        if (next_key < n_keys) {
            size_t at = cache + (size_t)next_key * HEAD_DIM;
            copy_tile(keys + next * TILE * STRIDE, k_cache + at, HEAD_DIM, n_keys - next_key);
            copy_tile(values + next * TILE * STRIDE, v_cache + at, HEAD_DIM, n_keys - next_key);
        }
        commit_copies();  // the last group is empty, so that wait_copies<1> always waits for the current keys
        wait_copies<1>();
        __syncthreads();

        float weights[KEY_BLOCKS][4] = {};
        multiply_keys(weights, queries + warp * 16 * STRIDE, keys + now * TILE * STRIDE);
        update_softmax(weights, partial_out, largest, sums, first_key + column, first_position + row);
        add_values(partial_out, weights, values + now * TILE * STRIDE);
        __syncthreads();  // before the next copies overwrite these keys and values
    }

    store(out + rows_at + column, partial_out, sums, row_stride, row, n_rows);
}
