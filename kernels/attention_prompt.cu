// Attention of the many rows of a prompt (prefill), by tensor cores (flash attention, Dao et al. 2022):
// softmax(q k^T / sqrt(head_dim)) v, where a row attends to the positions from 0 to its own. The arrays q, k_cache,
// v_cache and out are those of attention.cu, which also holds the naive kernel. attention_steps.cu holds the steps
// between the two.
//   tiles (n_tiles, 4): up to ROWS neighbouring rows of one sequence: first row, number of rows, position of the first
//   row, slot of the cache. Prompts of any length, starting at any position, are cut into such tiles; those with the
//   most keys come first.
// A block computes one head of one tile. It takes 64 keys and values at a time, and loads the next 64 while it
// multiplies the current ones. Scores and weights stay in registers (attention_prompt.cuh shows where); softmax is
// online, with a running maximum and a running sum.
//
// Launch: (n_heads, n_tiles) blocks of 128 threads. A warp has ROWS / 4 rows, in bands of 16: each key and value that
//         it loads from shared memory serves two bands. At head_dim 128 a block has 104 KB of dynamic shared memory, so
//         two fit on an SM.
// Work:   4 head_dim FLOPs for each head and pair of positions: 17.6 TFLOP for a prompt of 8,192 tokens in the 8B
//         model. K and V come from the L2 cache.
// Cost:   counted in the machine code for sm_90 (benchmarks/gpu_attention_counts.py), not measured. For 64 keys, a warp
//         executes 256 HMMA (the products) and 745 other instructions, among them 80 LDSM (loads from shared memory),
//         16 LDGSTS (copies into it) and 68 MUFU (exp2). The eight warps of an SM need for this
//           3,303 cycles of the tensor cores, at 62 % of their peak, which mma.sync reaches on Hopper
//           3,072 cycles of shared memory: 128 bytes each
//           1,490 issue slots of each of the four schedulers, besides the products
//         If products and other instructions of a scheduler never overlapped, an H100 at 1.755 GHz would do
//         399 TFLOP/s for a causal prompt of 8,192 tokens; if they always did, 579. Latencies come on top:
//         FlashAttention 2, which has such tiles as well, is published at 330 to 370.
#include "attention_prompt.cuh"

#ifndef ROWS
#define ROWS 128  // of a block: 128, or 64 where a block has at most 99 KB of shared memory
#endif

constexpr int THREADS = 128, KEYS = 64;  // KEYS: that a block takes at a time
constexpr int BANDS = ROWS / 64;         // a warp has one or two bands of 16 rows
constexpr int STRIDE = HEAD_DIM + 8;     // of a row in shared memory: the 8 rows of a matrix lie in different banks
constexpr int KEY_BLOCKS = KEYS / 8;     // of 8, the width of mma's result

// Copies rows 0 to n - 1 of a tile of N rows; the other rows become zero.
template <int N>
__device__ __forceinline__ void copy_tile(bf16* tile, const bf16* from, size_t row_stride, int n) {
    constexpr int A_ROW = HEAD_DIM / 8;  // copies
    int row = threadIdx.x / A_ROW, channel = threadIdx.x % A_ROW * 8;
    tile += row * STRIDE + channel;
    from += row * row_stride + channel;
#pragma unroll
    for (int i = 0; i < N; i += THREADS / A_ROW) copy_async(tile + i * STRIDE, from + i * row_stride, row + i < n);
}

// scores = the warp's queries (16 BANDS, head_dim) times 64 keys. Each key that is loaded serves all bands.
__device__ __forceinline__ void multiply_keys(float (&scores)[BANDS][KEY_BLOCKS][4], const bf16* queries,
                                              const bf16* keys) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int c = 0; c < HEAD_DIM; c += 16) {
        unsigned a[BANDS][4], b[4];
#pragma unroll
        for (int band = 0; band < BANDS; band++)
            load_matrices(a[band], queries + (band * 16 + lane % 16) * STRIDE + c + lane / 16 * 8);
#pragma unroll
        for (int j = 0; j < KEY_BLOCKS; j += 2) {  // keys (64, HEAD_DIM) is operand B transposed
            load_matrices(b, keys + (j * 8 + lane / 16 * 8 + lane % 8) * STRIDE + c + lane / 8 % 2 * 8);
#pragma unroll
            for (int band = 0; band < BANDS; band++) {
                mma(scores[band][j], a[band], {b[0], b[1]});
                mma(scores[band][j + 1], a[band], {b[2], b[3]});
            }
        }
    }
}

// partial_out (16 BANDS, head_dim) += weights (16 BANDS, 64) times 64 values
__device__ __forceinline__ void add_values(float (&partial_out)[BANDS][CHANNEL_BLOCKS][4],
                                           const float (&weights)[BANDS][KEY_BLOCKS][4], const bf16* values) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < KEY_BLOCKS; k += 2) {
        unsigned a[BANDS][4], b[4];
#pragma unroll
        for (int band = 0; band < BANDS; band++) pack_weights(a[band], weights[band], k);
#pragma unroll
        for (int j = 0; j < CHANNEL_BLOCKS; j += 2) {
            load_matrices_transposed(b, values + (k * 8 + lane % 16) * STRIDE + j * 8 + lane / 16 * 8);
#pragma unroll
            for (int band = 0; band < BANDS; band++) {
                mma(partial_out[band][j], a[band], {b[0], b[1]});
                mma(partial_out[band][j + 1], a[band], {b[2], b[3]});
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_prompt(const bf16* q, const bf16* k_cache, const bf16* v_cache, const int* tiles, bf16* out, int n_heads,
                     int n_kv_heads, int max_len) {
    bf16* queries = reinterpret_cast<bf16*>(dynamic_shared());  // (ROWS, STRIDE)
    bf16* keys = queries + ROWS * STRIDE;                       // (2, 64, STRIDE): the current 64 and the next
    bf16* values = keys + 2 * KEYS * STRIDE;                    // (2, 64, STRIDE)
    wait_for_predecessor();
    let_successor_start();
    const auto [n_rows, first_position, row_stride, rows_at, keys_at] =
        tile_of_block(tiles, n_heads, n_kv_heads, max_len);
    k_cache += keys_at;
    v_cache += keys_at;
    int n_keys = first_position + n_rows;

    int warp_row = threadIdx.x / 32 * 16 * BANDS, lane = threadIdx.x % 32;
    int row = warp_row + lane / 4, column = lane % 4 * 2;  // the first of this lane's rows, and of its columns
    float partial_out[BANDS][CHANNEL_BLOCKS][4] = {};
    float largest[BANDS][2], sums[BANDS][2] = {}, shrink[2];
#pragma unroll
    for (int band = 0; band < BANDS; band++) largest[band][0] = largest[band][1] = MASKED;

    copy_tile<ROWS>(queries, q + rows_at, row_stride, n_rows);
    copy_tile<KEYS>(keys, k_cache, HEAD_DIM, n_keys);
    copy_tile<KEYS>(values, v_cache, HEAD_DIM, n_keys);
    commit_copies();
    for (int first_key = 0; first_key < n_keys; first_key += KEYS) {
        int next_key = first_key + KEYS, now = first_key % (2 * KEYS), next = next_key % (2 * KEYS);
        if (next_key < n_keys) {
            unsigned at = next_key * HEAD_DIM;  // 32 bits: with 64, some versions of the compiler spill
            copy_tile<KEYS>(keys + next * STRIDE, k_cache + at, HEAD_DIM, n_keys - next_key);
            copy_tile<KEYS>(values + next * STRIDE, v_cache + at, HEAD_DIM, n_keys - next_key);
        }
        commit_copies();  // the last group is empty, so that wait_copies<1> always waits for the current keys
        wait_copies<1>();
        __syncthreads();

        float weights[BANDS][KEY_BLOCKS][4] = {};
        multiply_keys(weights, queries + warp_row * STRIDE, keys + now * STRIDE);
        if (next_key > n_keys - ROWS) {  // otherwise every row sees all of these keys
#pragma unroll
            for (int band = 0; band < BANDS; band++)
                mask(weights[band], first_key + column, first_position + row + band * 16);
        }
#pragma unroll
        for (int band = 0; band < BANDS; band++) {
            update_softmax(weights[band], largest[band], sums[band], shrink);
            rescale(partial_out[band], shrink);
        }
        add_values(partial_out, weights, values + now * STRIDE);
        __syncthreads();  // before the next copies overwrite these keys and values
    }
#pragma unroll
    for (int band = 0; band < BANDS; band++)
        store(out + rows_at + column, partial_out[band], sums[band], row_stride, row + band * 16, n_rows);
}
