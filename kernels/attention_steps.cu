// Two steps between naive attention (attention_naive in attention.cu) and the fast attention of a prompt
// (attention_prompt.cu). They are here to be read; the model does not run them. They compute
// softmax(q k^T / sqrt(head_dim)) v for the rows of a prompt, without tensor cores. The arrays are those of
// attention_prompt.cu, except:
//   tiles (n_tiles, 4): up to 16 neighbouring rows of one sequence: first row, number of rows, position of the first
//   row, slot of the cache
//
// What each step gains, computed (not measured) for a prompt of 8,192 tokens in the 8B model: 32 layers of 32 heads,
// head_dim 128. The work is 17.6 TFLOP if no score is computed twice. A key that all threads of a block read at the
// same time counts once.
//
//                        keys and values
//                        requested         work           scores of a block
//   attention_naive      17.6 TB           1,135 TFLOP    not kept: each of 128 threads computes every score again
//   attention_scores      1.1 TB            17.6 TFLOP    all of 16 rows: 64 bytes of shared memory a position
//   attention_online      1.1 TB            17.6 TFLOP    of 16 rows and 32 keys: 2 KB of shared memory
//   attention_prompt      0.14 TB           17.6 TFLOP    of 128 rows and 64 keys, in registers
//
// attention_scores cannot take this prompt: its scores need 524 KB, and a block has at most 227 KB of shared memory.
// attention_online has no such limit. But both read shared memory about 3 times for 2 multiply-adds. An SM does 128
// multiply-adds a cycle and reads 32 words a cycle from shared memory. So for each cycle of multiply-adds they read for
// 6 cycles. The multiply-adds alone take 263 ms at 67 TFLOP/s, the peak of an H200 without tensor cores. With tensor
// cores, in attention_prompt.cu, all of it takes 44 ms at 399 TFLOP/s.
//
// Launch: (n_tiles, n_heads) blocks of head_dim threads. attention_scores takes 64 bytes of dynamic shared memory for
//         each position of the longest sequence, rounded up to a multiple of 32 positions.
#include "common.cuh"

#ifndef HEAD_DIM
#define HEAD_DIM 128
#endif

constexpr int THREADS = HEAD_DIM, WARPS = THREADS / 32;
constexpr int ROWS = 16;              // query rows of a block
constexpr int KEYS = 32;              // keys in shared memory at a time: one a lane
constexpr int STRIDE = HEAD_DIM + 2;  // of a row in shared memory: 32 lanes that read 32 rows read from 32 banks
constexpr float MASKED = -1e30f;      // the score of a key after the row's own position

// What a block works on: one tile and one head.
struct Tile {
    int n_rows, first_position, n_keys;
    size_t row_stride, rows_at;  // of q and out, in elements: from row to row, and of the tile's first row
    size_t cache_at;             // of k_cache and v_cache: position 0
};

__device__ __forceinline__ Tile tile_of(const int* tiles, int n_heads, int n_kv_heads, int max_len) {
    const int* t = tiles + 4 * blockIdx.x;
    int head = blockIdx.y, kv_head = head / (n_heads / n_kv_heads);
    return {t[1], t[2], t[1] + t[2], (size_t)n_heads * HEAD_DIM, ((size_t)t[0] * n_heads + head) * HEAD_DIM,
            ((size_t)t[3] * n_kv_heads + kv_head) * max_len * HEAD_DIM};
}

// Loads rows 0 to n - 1 of N; the other rows become zero.
template <int N>
__device__ __forceinline__ void load_rows(bf16 (&loaded)[N][STRIDE], const bf16* from, size_t row_stride, int n) {
    for (int i = threadIdx.x; i < N * HEAD_DIM; i += THREADS) {
        int row = i / HEAD_DIM, channel = i % HEAD_DIM;
        loaded[row][channel] = row < n ? from[row * row_stride + channel] : __float2bfloat16(0);
    }
}

__device__ __forceinline__ float score(const bf16* query, const bf16* key, bool seen) {
    float sum = 0;
    for (int c = 0; c < HEAD_DIM; c++) sum += __bfloat162float(query[c]) * __bfloat162float(key[c]);
    return seen ? sum * rsqrtf(HEAD_DIM) : MASKED;
}

// partial_out[row] += the row's weights times this thread's channel of n values; weights (ROWS, row_stride). Values
// need no shared memory: only one thread reads a channel, and it uses the channel for all rows.
__device__ __forceinline__ void add_values(float (&partial_out)[ROWS], const float* weights, int row_stride,
                                           const bf16* values, int n) {
    for (int key = 0; key < n; key++) {
        float value = __bfloat162float(values[(size_t)key * HEAD_DIM + threadIdx.x]);
#pragma unroll
        for (int row = 0; row < ROWS; row++) partial_out[row] += weights[row * row_stride + key] * value;
    }
}

__device__ __forceinline__ void store(bf16* out, const Tile& tile, const float (&partial_out)[ROWS],
                                      const float* total) {
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
        if (row >= tile.n_rows) break;
        out[tile.rows_at + row * tile.row_stride + threadIdx.x] = __float2bfloat16(partial_out[row] / total[row]);
    }
}

// Step 1: keys in shared memory. 16 rows share each key and each value that is loaded, and a score is computed once.
// All scores of these rows are kept in shared memory, because softmax needs the largest of them first.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_scores(const bf16* q, const bf16* k_cache, const bf16* v_cache, const int* tiles, bf16* out, int n_heads,
                     int n_kv_heads, int max_len) {
    __shared__ bf16 queries[ROWS][STRIDE], keys[KEYS][STRIDE];
    __shared__ float total[ROWS];                                // the sum of each row's weights
    float* scores = reinterpret_cast<float*>(dynamic_shared());  // (ROWS, n_scores); later they become weights
    Tile tile = tile_of(tiles, n_heads, n_kv_heads, max_len);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_scores = (tile.n_keys + KEYS - 1) / KEYS * KEYS;

    load_rows(queries, q + tile.rows_at, tile.row_stride, tile.n_rows);
    for (int first = 0; first < tile.n_keys; first += KEYS) {
        load_rows(keys, k_cache + tile.cache_at + (size_t)first * HEAD_DIM, HEAD_DIM, tile.n_keys - first);
        __syncthreads();
        for (int row = warp; row < ROWS; row += WARPS) {
            bool seen = first + lane <= tile.first_position + row;
            scores[row * n_scores + first + lane] = score(queries[row], keys[lane], seen);
        }
        __syncthreads();  // before the next keys overwrite these
    }
    for (int row = warp; row < ROWS; row += WARPS) {
        float largest = MASKED, sum = 0, *row_scores = scores + row * n_scores;
        for (int i = lane; i < n_scores; i += 32) largest = fmaxf(largest, row_scores[i]);
        largest = warp_max(largest);
        for (int i = lane; i < n_scores; i += 32) sum += row_scores[i] = expf(row_scores[i] - largest);
        sum = warp_sum(sum);
        if (lane == 0) total[row] = sum;
    }
    __syncthreads();
    float partial_out[ROWS] = {};  // this thread's channel of each row
    add_values(partial_out, scores, n_scores, v_cache + tile.cache_at, tile.n_keys);
    store(out, tile, partial_out, total);
}

// Step 2: online softmax. Each row keeps a running maximum and a running sum of its weights. When the maximum grows,
// all that was summed before is multiplied by exp(old maximum - new maximum), as if the new one had been known from
// the beginning. So a block keeps the scores of 32 keys only, and reads keys and values in one pass.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_online(const bf16* q, const bf16* k_cache, const bf16* v_cache, const int* tiles, bf16* out, int n_heads,
                     int n_kv_heads, int max_len) {
    __shared__ bf16 queries[ROWS][STRIDE], keys[KEYS][STRIDE];
    __shared__ float weights[ROWS][KEYS], scale[ROWS], total[ROWS];
    Tile tile = tile_of(tiles, n_heads, n_kv_heads, max_len);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float largest[ROWS / WARPS], sum[ROWS / WARPS] = {};  // of rows warp, warp + WARPS, ...: the same in every lane
#pragma unroll
    for (int i = 0; i < ROWS / WARPS; i++) largest[i] = MASKED;
    float partial_out[ROWS] = {};  // this thread's channel of each row

    load_rows(queries, q + tile.rows_at, tile.row_stride, tile.n_rows);
    for (int first = 0; first < tile.n_keys; first += KEYS) {
        size_t at = tile.cache_at + (size_t)first * HEAD_DIM;
        load_rows(keys, k_cache + at, HEAD_DIM, tile.n_keys - first);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < ROWS / WARPS; i++) {
            int row = warp + i * WARPS;
            float s = score(queries[row], keys[lane], first + lane <= tile.first_position + row);
            float now_largest = fmaxf(largest[i], warp_max(s));
            float weight = expf(s - now_largest), shrink = expf(largest[i] - now_largest);
            sum[i] = sum[i] * shrink + warp_sum(weight);
            largest[i] = now_largest;
            weights[row][lane] = weight;
            if (lane == 0) scale[row] = shrink, total[row] = sum[i];
        }
        __syncthreads();
#pragma unroll
        for (int row = 0; row < ROWS; row++) partial_out[row] *= scale[row];
        add_values(partial_out, weights[0], KEYS, v_cache + at, min(KEYS, tile.n_keys - first));
    }
    store(out, tile, partial_out, total);
}
