// A step between naive attention (attention_naive in attention.cu) and the fast attention of decoding (attention.cu):
// the positions of a row are cut into splits, which different blocks take at the same time (flash-decoding, Dao et al.
// 2023). It is here to be read; the model does not run it. The arrays are those of attention.cu. Two launches:
//   attention_split     softmax and weighted values of one split, as if the row had no other positions
//   attention_combine   the result of a row from those of its splits
//
// What each step gains, computed (not measured) for one row with 8,192 positions in the 8B model: 32 layers of 32 query
// heads and 8 kv heads, head_dim 128. A key that all threads of a block read at the same time counts once.
//
//                        blocks    keys and values    work
//                        a layer   requested
//   attention_naive         32      4.3 GB            277 GFLOP: each of 128 threads computes every score again
//   attention_split      1,024      4.3 GB            4.3 GFLOP
//   attention              256      1.1 GB            4.3 GFLOP, by tensor cores
//
// 32 blocks keep 32 of an H200's 132 multiprocessors busy. Each of these waits for its own loads, and they do not ask
// for enough at a time to use the memory's rate. attention.cu lets the four query heads that share a kv head share a
// block, so that it reads keys and values once, and needs no second launch.
//
// Launch: attention_split (n_heads, n_splits, T), attention_combine (n_heads, T) blocks of head_dim threads; n_splits
//         is max_len / SPLIT, rounded up.
#include "common.cuh"

#ifndef HEAD_DIM
#define HEAD_DIM 128
#endif

constexpr int THREADS = HEAD_DIM, WARPS = THREADS / 32;
constexpr int SPLIT = 256;           // positions of a split
constexpr float SMALLEST = -1e30f;   // below any score

extern "C" __global__ void __launch_bounds__(THREADS)
    attention_split(const bf16* q, const bf16* k_cache, const bf16* v_cache, const int* positions, const int* slots,
                    float* partial_out, float* stats, int n_heads, int n_kv_heads, int max_len) {
    __shared__ float scores[SPLIT];
    int head = blockIdx.x, split = blockIdx.y, row = blockIdx.z, kv_head = head / (n_heads / n_kv_heads);
    int n = min(positions[row] + 1 - split * SPLIT, SPLIT);  // positions in this split
    if (n <= 0) return;
    const bf16* q_head = q + ((size_t)row * n_heads + head) * HEAD_DIM;
    size_t cache = (((size_t)slots[row] * n_kv_heads + kv_head) * max_len + split * SPLIT) * HEAD_DIM;

    int lane = threadIdx.x % 32;
    for (int i = threadIdx.x / 32; i < n; i += WARPS) {  // a warp takes a position, a lane every 32nd channel of it
        float score = 0;
        for (int c = lane; c < HEAD_DIM; c += 32) {
            score += __bfloat162float(q_head[c]) * __bfloat162float(k_cache[cache + i * HEAD_DIM + c]);
        }
        score = warp_sum(score) * rsqrtf(HEAD_DIM);
        if (lane == 0) scores[i] = score;
    }
    __syncthreads();
    float largest = SMALLEST, sum = 0, channel_sum = 0;  // the same in every thread, except for the last: its channel
    for (int i = 0; i < n; i++) largest = fmaxf(largest, scores[i]);
    for (int i = 0; i < n; i++) {
        float weight = expf(scores[i] - largest);
        sum += weight;
        channel_sum += weight * __bfloat162float(v_cache[cache + i * HEAD_DIM + threadIdx.x]);
    }
    size_t at = ((size_t)row * n_heads + head) * gridDim.y + split;
    partial_out[at * HEAD_DIM + threadIdx.x] = channel_sum;
    if (threadIdx.x == 0) stats[2 * at] = largest, stats[2 * at + 1] = sum;
}

// Each split has subtracted its own largest score. Its numbers are multiplied by exp(that score - the overall largest),
// as if the overall largest had been subtracted.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_combine(const float* partial_out, const float* stats, const int* positions, bf16* out, int n_splits) {
    size_t head = (size_t)blockIdx.y * gridDim.x + blockIdx.x;  // counted over all rows
    int filled = (positions[blockIdx.y] + SPLIT) / SPLIT;       // splits that have a position; 0 for a padding row
    const float *of_split = stats + head * n_splits * 2, *values = partial_out + head * n_splits * HEAD_DIM;
    float largest = SMALLEST, sum = 0, channel_sum = 0;
    for (int s = 0; s < filled; s++) largest = fmaxf(largest, of_split[2 * s]);
    for (int s = 0; s < filled; s++) {
        float scale = expf(of_split[2 * s] - largest);
        sum += scale * of_split[2 * s + 1];
        channel_sum += scale * values[s * HEAD_DIM + threadIdx.x];
    }
    out[head * HEAD_DIM + threadIdx.x] = __float2bfloat16(sum > 0 ? channel_sum / sum : 0);
}
