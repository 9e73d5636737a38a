// Grouped-query attention of single rows over the cache, for decoding: softmax(q k^T / sqrt(head_dim)) v, from position
// 0 to the row's own position.
//   q (T, n_heads, head_dim), k_cache and v_cache (slots, n_kv_heads, max_len, head_dim), out (T, n_heads, head_dim)
//   positions, slots (T): each row's position and its slot of the cache, in device memory, so that a replayed graph
//   reads the new ones. Padding rows: graphs are captured for 1, 2, 4, ... rows, and unused ones have position -1. Such
//   a row attends to nothing, and its result is zero.
// A long cache is split, so that even one row keeps the whole GPU busy (flash-decoding, Dao et al. 2023). A block
// computes GROUP heads of a row over one split of SPLIT positions. The block that ends last for these heads combines
// the results of all splits. The borders of the splits are fixed, so a row's bits depend only on its own sequence.
//
// Launch: (n_heads / GROUP, max_len / SPLIT, T) blocks of 128 threads, max_len / SPLIT rounded up. A block whose split
//         begins after the row's position ends at once.
// Bytes:  4 n_kv_heads head_dim for each position, read once for the GROUP query heads that share a kv head: 1.07 GB
//         for 8,192 positions in the 32 layers of the 8B model, 0.25 ms a token at 4.3 TB/s. The partial results are
//         written and read once, 8 head_dim for each head and split: 1/32 of that.
#include "common.cuh"

#ifndef HEAD_DIM
#define HEAD_DIM 128
#endif
#ifndef GROUP
#define GROUP 4  // query heads of a block; they share a kv head
#endif

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

constexpr int THREADS = 128, WARPS = THREADS / 32;
constexpr int SPLIT = 256;                           // positions that a block attends to
constexpr int LANES = HEAD_DIM / 8;                  // lanes that read one position, 16 bytes each
constexpr int POSITIONS_PER_PASS = THREADS / LANES;  // positions that the block reads at the same time
constexpr int IN_FLIGHT = 4;                         // loads that a thread has in flight
static_assert(SPLIT % (POSITIONS_PER_PASS * IN_FLIGHT) == 0 && 32 % LANES == 0, "the loops have no tail");

// Loads this thread's eight channels of IN_FLIGHT positions: `first` and every POSITIONS_PER_PASS-th after it.
// Positions from n on are loaded as zeros.
__device__ __forceinline__ void load_positions(uint4 (&into)[IN_FLIGHT], const bf16* channels, int first, int n) {
#pragma unroll
    for (int j = 0; j < IN_FLIGHT; j++) {
        int position = first + POSITIONS_PER_PASS * j;
        into[j] = make_uint4(0, 0, 0, 0);
        if (position < n) into[j] = *reinterpret_cast<const uint4*>(channels + (size_t)position * HEAD_DIM);
    }
}

// scores (GROUP, SPLIT) of n positions; q (GROUP, HEAD_DIM). The threads that share a position each multiply eight
// channels; their sum is the score.
__device__ __forceinline__ void compute_scores(float (&scores)[GROUP][SPLIT], const bf16* q, const bf16* keys, int n) {
    int channel = threadIdx.x % LANES * 8, first = threadIdx.x / LANES;
    Eight query[GROUP];
#pragma unroll
    for (int g = 0; g < GROUP; g++) query[g] = load_eight(q + g * HEAD_DIM + channel);
    for (int base = first; base < SPLIT; base += POSITIONS_PER_PASS * IN_FLIGHT) {
        uint4 loaded[IN_FLIGHT];
        load_positions(loaded, keys + channel, base, n);
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; j++) {
            Eight key = unpack(loaded[j]);
#pragma unroll
            for (int g = 0; g < GROUP; g++) {
                float score = 0;
#pragma unroll
                for (int i = 0; i < 8; i++) score += query[g].v[i] * key.v[i];
#pragma unroll
                for (int bit = LANES / 2; bit; bit /= 2) score += __shfl_xor_sync(ALL_LANES, score, bit);
                if (channel == 0) scores[g][base + POSITIONS_PER_PASS * j] = score * rsqrtf(HEAD_DIM);
            }
        }
    }
}

// Turns the scores into weights exp(score - largest); those from position n on become zero. A warp takes a head.
__device__ __forceinline__ void compute_weights(float (&weights)[GROUP][SPLIT], float (&sum_of)[GROUP], float* stats,
                                                int heads, int split, int n_splits, int n) {
    int lane = threadIdx.x % 32;
    for (int g = threadIdx.x / 32; g < GROUP; g += WARPS) {
        float largest = -1e30f, sum = 0;
        for (int i = lane; i < n; i += 32) largest = fmaxf(largest, weights[g][i]);
        largest = warp_max(largest);
        for (int i = lane; i < SPLIT; i += 32) {
            float weight = i < n ? __expf(weights[g][i] - largest) : 0;
            weights[g][i] = weight;
            sum += weight;
        }
        sum = warp_sum(sum);
        if (lane == 0) {
            float* to = stats + ((size_t)(heads + g) * n_splits + split) * 2;
            to[0] = largest;
            to[1] = sum_of[g] = sum;
        }
    }
}

// warp_out[warp] (GROUP, HEAD_DIM): the weighted sum of the values at each warp's positions. Each thread adds up its
// eight channels of every POSITIONS_PER_PASS-th position. Then the lanes of a warp that hold the same channels add up
// their sums.
__device__ __forceinline__ void add_values(float (&warp_out)[WARPS][GROUP][HEAD_DIM],
                                           const float (&weights)[GROUP][SPLIT], const bf16* values, int n) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, channel = threadIdx.x % LANES * 8;
    Eight sums[GROUP] = {};
    for (int base = threadIdx.x / LANES; base < SPLIT; base += POSITIONS_PER_PASS * IN_FLIGHT) {
        uint4 loaded[IN_FLIGHT];
        load_positions(loaded, values + channel, base, n);
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; j++) {
            Eight value = unpack(loaded[j]);
#pragma unroll
            for (int g = 0; g < GROUP; g++) {
                float weight = weights[g][base + POSITIONS_PER_PASS * j];
#pragma unroll
                for (int i = 0; i < 8; i++) sums[g].v[i] += weight * value.v[i];
            }
        }
    }
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float sum = sums[g].v[i];
#pragma unroll
            for (int bit = 16; bit >= LANES; bit /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, bit);
            if (lane < LANES) warp_out[warp][g][channel + i] = sum;
        }
    }
}

// The last block combines the `filled` splits of its heads into out (GROUP, HEAD_DIM). Each split is scaled by exp(its
// largest score - the overall largest). partial_out and stats begin at the first head and split; weights is scratch.
__device__ __forceinline__ void combine_splits(bf16* out, const float* partial_out, const float* stats,
                                               float (&weights)[GROUP][SPLIT], float (&sum_of)[GROUP], int n_splits,
                                               int filled) {
    int lane = threadIdx.x % 32;
    for (int g = threadIdx.x / 32; g < GROUP; g += WARPS) {
        const float* of_split = stats + (size_t)g * n_splits * 2;
        float largest = -1e30f, sum = 0;
        for (int s = lane; s < filled; s += 32) largest = fmaxf(largest, of_split[2 * s]);
        largest = warp_max(largest);
        for (int s = lane; s < filled; s += 32) {
            weights[g][s] = __expf(of_split[2 * s] - largest);
            sum += weights[g][s] * of_split[2 * s + 1];
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
            total[0] += weights[g][s] * v.x, total[1] += weights[g][s] * v.y;
            total[2] += weights[g][s] * v.z, total[3] += weights[g][s] * v.w;
        }
        float sum = sum_of[g];
        *reinterpret_cast<uint2*>(out + i) =
            make_uint2(pack_two(total[0] / sum, total[1] / sum), pack_two(total[2] / sum, total[3] / sum));
    }
}

// If a row has more than one split, the blocks pass their results to the last one in these arrays:
// partial_out (T, n_heads, n_splits, head_dim): each split's weighted values, not yet divided by its sum of weights
// stats (T, n_heads, n_splits, 2): its largest score, and the sum of its weights exp(score - largest)
// arrivals: how many splits have ended, a number for each row and group of heads; zero before and after the launch
extern "C" __global__ void __launch_bounds__(THREADS)
    attention(const bf16* q, const bf16* k_cache, const bf16* v_cache, const int* positions, const int* slots,
              float* partial_out, float* stats, unsigned* arrivals, bf16* out, int n_heads, int n_kv_heads,
              int max_len) {
    __shared__ float weights[GROUP][SPLIT];  // of the positions; in combine_splits, of the splits
    __shared__ float warp_out[WARPS][GROUP][HEAD_DIM];
    __shared__ float sum_of[GROUP];  // the sum of a head's weights
    wait_for_predecessor();
    let_successor_start();
    int first_head = blockIdx.x * GROUP, split = blockIdx.y, n_splits = gridDim.y, row = blockIdx.z;
    int filled = (positions[row] + SPLIT) / SPLIT;           // splits that have a position; 0 for a padding row
    int n = min(positions[row] + 1 - split * SPLIT, SPLIT);  // positions in this split
    int heads = row * n_heads + first_head;                  // this block's first head, counted over all rows
    bf16* out_heads = out + (size_t)heads * HEAD_DIM;
    if (filled == 0 && split == 0) {
        for (int i = threadIdx.x; i < GROUP * HEAD_DIM; i += THREADS) out_heads[i] = __float2bfloat16(0);
    }
    if (n <= 0) return;

    int kv_head = first_head / (n_heads / n_kv_heads);
    size_t cache = (((size_t)slots[row] * n_kv_heads + kv_head) * max_len + split * SPLIT) * HEAD_DIM;
    compute_scores(weights, q + (size_t)heads * HEAD_DIM, k_cache + cache, n);
    __syncthreads();
    compute_weights(weights, sum_of, stats, heads, split, n_splits, n);
    __syncthreads();
    add_values(warp_out, weights, v_cache + cache, n);
    __syncthreads();
    for (int i = threadIdx.x; i < GROUP * HEAD_DIM; i += THREADS) {
        int g = i / HEAD_DIM, c = i % HEAD_DIM;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += warp_out[w][g][c];
        if (filled == 1) {
            out_heads[i] = __float2bfloat16(sum / sum_of[g]);
        } else {
            partial_out[((size_t)(heads + g) * n_splits + split) * HEAD_DIM + c] = sum;
        }
    }
    if (filled == 1 || !is_last_block(arrivals + (size_t)row * gridDim.x + blockIdx.x, filled)) return;
    size_t first_split = (size_t)heads * n_splits;
    combine_splits(out_heads, partial_out + first_split * HEAD_DIM, stats + first_split * 2, weights, sum_of, n_splits,
                   filled);
}
