// Grouped-query attention of single rows over the cache, for decoding: softmax(q k^T / sqrt(head_dim)) v, from position
// 0 to the row's own position.
//   q (T, n_heads, head_dim), k_cache and v_cache (slots, n_kv_heads, max_len, head_dim), out (T, n_heads, head_dim)
//   positions, slots (T): each row's position and its slot of the cache, in device memory, so that a replayed graph
//   reads the new ones. Padding rows: graphs are captured for 1, 2, 4, ... rows, and unused ones have position -1. Such
//   a row attends to nothing, and its result is zero.
// A long cache is split, so that even one row keeps the whole GPU busy (flash-decoding, Dao et al. 2023). A block
// computes GROUP heads of a row over a split of SPLIT positions, by tensor cores. The block that ends last for these
// heads combines the results of all splits. The borders of the splits are fixed, so a row's bits depend only on its own
// sequence. attention_split_steps.cu holds a step between the naive kernel and this one.
//
// Launch: (n_heads / GROUP, S, T) blocks of 128 threads. S is the number of splits of a full cache, but less if there
//         would be more than about 2,048 blocks. A block takes every S-th split of its row, up to the row's position.
//         If there is none, it ends at once, even before the kernel in front of this one has ended.
// Bytes:  4 n_kv_heads head_dim for each position, read once for the GROUP query heads that share a kv head: 1.07 GB
//         for 8,192 positions in the 32 layers of the 8B model, 0.25 ms a token at 4.3 TB/s. The partial results are
//         written and read once, 8 head_dim for each head and split: 1/32 of that.
// Time:   computed, not measured; an SM reads its share of memory at 13 bytes a cycle on an H100, 18.6 on an H200.
//         A warp executes about 280 instructions for a tile, 8 KB of keys and values. In the 440 cycles in which an
//         H200 reads them, an SM can execute 1,760. Three blocks fit an SM, and each of their twelve warps has 4 KB on
//         the way, 48 KB in all; 19 KB are enough at a latency of 1,000 cycles. So reading decides where there is much
//         to read: 62 microseconds a layer for 64 rows of 1,024 positions at 4.3 TB/s, 7.8 for one row of 8,192. For
//         one row of 128 positions, keys and values are in the L2 cache when the kernel has waited. From then on it
//         takes about 2,000 cycles, 1.1 microseconds: a warp has two tiles and makes three trips to L2.
#include "attention.cuh"
#include "prefetch.cuh"

// The naive kernel: a thread for each channel of a head of a row. Every thread computes all scores of its head itself.
extern "C" __global__ void attention_naive(const bf16* q, const bf16* k_cache, const bf16* v_cache,
                                           const int* positions, const int* slots, bf16* out, int n_heads,
                                           int n_kv_heads, int max_len) {
    int channel = threadIdx.x, head = blockIdx.x, row = blockIdx.y, kv_head = head / (n_heads / n_kv_heads);
    const bf16* q_row = q + ((size_t)row * n_heads + head) * HEAD_DIM;
    size_t cache = ((size_t)slots[row] * n_kv_heads + kv_head) * max_len * HEAD_DIM;
    float largest = -1e30f, sum = 0, partial_out = 0;
    for (int position = 0; position <= positions[row]; position++) {
        size_t at = cache + (size_t)position * HEAD_DIM;
        float score = 0;
        for (int i = 0; i < HEAD_DIM; i++) score += __bfloat162float(q_row[i]) * __bfloat162float(k_cache[at + i]);
        score /= sqrtf(HEAD_DIM);
        float now_largest = fmaxf(largest, score);
        float old = expf(largest - now_largest), weight = expf(score - now_largest);
        sum = sum * old + weight;  // a new largest score scales down all that was summed before
        partial_out = partial_out * old + weight * __bfloat162float(v_cache[at + channel]);
        largest = now_largest;
    }
    out[((size_t)row * n_heads + head) * HEAD_DIM + channel] = __float2bfloat16(sum > 0 ? partial_out / sum : 0);
}

// What each warp finds out about its positions of a split.
struct Found {
    float4 out[WARPS][HEAD_DIM / 16][4 * GROUP];  // the weighted sum of the values, not divided by the sum of weights
    float largest[WARPS][GROUP];                  // the largest score
    float sum[WARPS][GROUP];                      // the sum of the weights exp(score - largest)
};

// Attends to the n positions of a split. A warp takes every fourth tile. It asks for the keys of the next one as soon
// as it has multiplied these, and for the first values before it computes weights.
__device__ __forceinline__ void attend(Found& found, const uint4 (&query)[CHUNKS], const bf16* keys,
                                       const bf16* values, int n) {
    int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, first = warp * TILE;
    uint4 key[2][CHUNKS], value[4][HALVES];
    float scores[TILES][2][2], sums[HALVES][8][4] = {}, largest;
    load_keys(key, keys, first, n);
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        int at = first + i * STEP;
        if (at < n) {
            compute_scores(scores[i], query, key, at, n);
            if (i + 1 < TILES && at + STEP < n) load_keys(key, keys, at + STEP, n);
        } else {
            scores[i][0][0] = scores[i][0][1] = scores[i][1][0] = scores[i][1][1] = MASKED;
        }
    }
    load_values(value, values, first, n);
    float sum = compute_weights(scores, largest);
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        int at = first + i * STEP;
        if (at < n) add_values(sums, scores[i], value);
        if (i + 1 < TILES && at + STEP < n) load_values(value, values, at + STEP, n);
    }
    if (g >= GROUP) return;
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 16; i++) {  // a lane holds 16 neighbouring channels of each half, four at a time
        float four[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float(&sum_of)[4] = sums[i / 4][i % 2 * 4 + j];
            four[j] = sum_of[i / 2 % 2] + sum_of[2 + i / 2 % 2];
        }
        found.out[warp][i][threadIdx.x % 32] = make_float4(four[0], four[1], four[2], four[3]);
    }
    if (threadIdx.x % 4 == 0) found.largest[warp][g] = largest, found.sum[warp][g] = sum;
}

__device__ __forceinline__ void store_four(bf16* out, const float (&total)[4], float sum) {
    *reinterpret_cast<uint2*>(out) =
        make_uint2(pack_two(total[0] / sum, total[1] / sum), pack_two(total[2] / sum, total[3] / sum));
}

// Adds up what the warps have found. Each is scaled by exp(its largest score - the overall largest). The only split of
// a row is its result; of several, each is stored in partial_out and stats, which begin at the first head's split.
__device__ __forceinline__ void store_split(const Found& found, bf16* out, float* partial_out, float* stats,
                                            int n_splits, bool only_one) {
    for (int i = threadIdx.x; i < GROUP * HEAD_DIM / 4; i += THREADS) {  // four channels of a head
        int part = i / (4 * GROUP), lane = i % (4 * GROUP), g = lane / 4;
        int at = g * HEAD_DIM + part / 4 * 64 + lane % 4 * 16 + part % 4 * 4;
        float largest = MASKED, sum = 0, total[4] = {};
#pragma unroll
        for (int w = 0; w < WARPS; w++) largest = fmaxf(largest, found.largest[w][g]);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            float scale = __expf(found.largest[w][g] - largest);
            float4 v = found.out[w][part][lane];
            sum += scale * found.sum[w][g];
            total[0] += scale * v.x, total[1] += scale * v.y, total[2] += scale * v.z, total[3] += scale * v.w;
        }
        if (only_one) {
            store_four(out + at, total, sum);
        } else {
            size_t head = (size_t)g * n_splits;
            *reinterpret_cast<float4*>(partial_out + head * HEAD_DIM + at % HEAD_DIM) =
                make_float4(total[0], total[1], total[2], total[3]);
            if (at % HEAD_DIM == 0) stats[2 * head] = largest, stats[2 * head + 1] = sum;
        }
    }
}

// The last block combines the `filled` splits of its heads into out (GROUP, HEAD_DIM), as store_split adds up warps.
// partial_out and stats begin at the first head and split.
__device__ __forceinline__ void combine_splits(bf16* out, const float* partial_out, const float* stats, int n_splits,
                                               int filled) {
    __shared__ float scale[GROUP][MAX_SPLITS], sum_of[GROUP];
    int lane = threadIdx.x % 32;
    for (int g = threadIdx.x / 32; g < GROUP; g += WARPS) {
        const float* of_split = stats + (size_t)g * n_splits * 2;
        float largest = MASKED, sum = 0;
        for (int s = lane; s < filled; s += 32) largest = fmaxf(largest, of_split[2 * s]);
        largest = warp_max(largest);
        for (int s = lane; s < filled; s += 32) {
            scale[g][s] = __expf(of_split[2 * s] - largest);
            sum += scale[g][s] * of_split[2 * s + 1];
        }
        sum = warp_sum(sum);
        if (lane == 0) sum_of[g] = sum;
    }
    __syncthreads();
    for (int i = 4 * threadIdx.x; i < GROUP * HEAD_DIM; i += 4 * THREADS) {  // four channels of a head
        int g = i / HEAD_DIM;
        const float* of_split = partial_out + (size_t)g * n_splits * HEAD_DIM + i % HEAD_DIM;
        float total[4] = {};
#pragma unroll 8
        for (int s = 0; s < filled; s++) {
            float4 v = *reinterpret_cast<const float4*>(of_split + (size_t)s * HEAD_DIM);
            total[0] += scale[g][s] * v.x, total[1] += scale[g][s] * v.y;
            total[2] += scale[g][s] * v.z, total[3] += scale[g][s] * v.w;
        }
        store_four(out + i, total, sum_of[g]);
    }
}

// Asks for the keys and values of n positions, by two threads of the block.
__device__ __forceinline__ void prefetch_split(const bf16* keys, const bf16* values, int n) {
    if (n <= 0) return;
    if (threadIdx.x == 0) prefetch_range(keys, 2 * HEAD_DIM * n);
    if (threadIdx.x == 32) prefetch_range(values, 2 * HEAD_DIM * n);
}

// If a row has more than one split, the blocks pass their results to the last one in these arrays:
// partial_out (T, n_heads, n_splits, head_dim): each split's weighted values, not yet divided by its sum of weights
// stats (T, n_heads, n_splits, 2): its largest score, and the sum of its weights exp(score - largest)
// arrivals: how many blocks have ended, a number for each row and group of heads; zero before and after the launch
extern "C" __global__ void __launch_bounds__(THREADS)
    attention(const bf16* q, const bf16* k_cache, const bf16* v_cache, const int* positions, const int* slots,
              float* partial_out, float* stats, unsigned* arrivals, bf16* out, int n_heads, int n_kv_heads,
              int max_len) {
    __shared__ Found found;
    int first_head = blockIdx.x * GROUP, row = blockIdx.z, n_splits = (max_len + SPLIT - 1) / SPLIT;
    int n = positions[row] + 1, filled = (n + SPLIT - 1) / SPLIT;  // positions, and splits that hold them; padding: 0
    int kv_head = first_head / (n_heads / n_kv_heads), split = blockIdx.y;
    if (split > 0 && split >= filled) return;
    size_t cache = ((size_t)slots[row] * n_kv_heads + kv_head) * max_len * HEAD_DIM;
    const bf16 *keys = k_cache + cache, *values = v_cache + cache;
    size_t at = (size_t)split * SPLIT * HEAD_DIM;
    prefetch_split(keys + at, values + at, min(n - split * SPLIT, SPLIT));
    wait_for_predecessor();
    let_successor_start();

    int heads = row * n_heads + first_head;  // this block's first head, counted over all rows
    q += (size_t)heads * HEAD_DIM, out += (size_t)heads * HEAD_DIM;
    partial_out += (size_t)heads * n_splits * HEAD_DIM, stats += (size_t)heads * n_splits * 2;
    if (filled == 0) {
        for (int i = threadIdx.x; i < GROUP * HEAD_DIM; i += THREADS) out[i] = __float2bfloat16(0);
        return;
    }
    uint4 query[CHUNKS];
    load_query(query, q);
    for (; split < filled; split += gridDim.y) {
        at = (size_t)split * SPLIT * HEAD_DIM;
        int next = (split + gridDim.y) * SPLIT;
        prefetch_split(keys + (size_t)next * HEAD_DIM, values + (size_t)next * HEAD_DIM, min(n - next, SPLIT));
        attend(found, query, keys + at, values + at, min(n - split * SPLIT, SPLIT));
        __syncthreads();
        store_split(found, out, partial_out + split * HEAD_DIM, stats + 2 * split, n_splits, filled == 1);
        __syncthreads();  // before the next split overwrites what was found
    }
    unsigned blocks = min(filled, static_cast<int>(gridDim.y));
    if (filled == 1 || !is_last_block(arrivals + (size_t)row * gridDim.x + blockIdx.x, blocks)) return;
    combine_splits(out, partial_out, stats, n_splits, filled);
}
