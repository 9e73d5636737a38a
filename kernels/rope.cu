// Rotary position embedding (Su et al. 2021): rotate queries and keys by their position; write keys and values into the
// cache.
//   qkv (T, n_heads + 2 n_kv_heads, head_dim): the result of one product; each row holds queries, keys, values
//   q (T, n_heads, head_dim): the rotated queries
//   k_cache, v_cache (slots, n_kv_heads, max_len, head_dim): the cache of one layer; it holds rotated keys
//   cos, sin (max_seq_len, head_dim / 2) float
//   positions, slots (T): each row's position and its slot of the cache, in device memory, so that a replayed graph
//   reads the next position. Padding rows: graphs are captured for 1, 2, 4, ... rows, and unused ones have position -1.
//   Nothing is written for them.
// Pair i of a head is channels i and i + head_dim / 2:  (a, b) -> (a cos - b sin, b cos + a sin).
//
// Launch: blocks of 256 threads. A thread takes eight pairs of a head, so a head takes head_dim / 16 threads.
// Bytes:  4 (n_heads + 2 n_kv_heads) head_dim for each row, half read, half written: 24 KB for the 8B model, and 201 MB
//         for 8,192 rows, 47 microseconds at 4.3 TB/s. The rows of cos and sin come from the L2 cache.
#include "common.cuh"

// The naive kernel: a thread takes a head of a row.
extern "C" __global__ void rope_naive(const bf16* qkv, const float* cos, const float* sin, const int* positions,
                                      const int* slots, bf16* q, bf16* k_cache, bf16* v_cache, int rows, int n_heads,
                                      int n_kv_heads, int head_dim, int max_len) {
    int heads = n_heads + 2 * n_kv_heads, half = head_dim / 2, index = blockIdx.x * blockDim.x + threadIdx.x;
    int row = index / heads, head = index % heads;
    if (row >= rows || positions[row] < 0) return;
    const bf16* from = qkv + ((size_t)row * heads + head) * head_dim;
    bool is_q = head < n_heads, is_v = head >= n_heads + n_kv_heads;
    size_t kv_row = ((size_t)slots[row] * n_kv_heads + (head - n_heads) % n_kv_heads) * max_len + positions[row];
    bf16* to = is_q ? q + ((size_t)row * n_heads + head) * head_dim : (is_v ? v_cache : k_cache) + kv_row * head_dim;
    for (int i = 0; i < half; i++) {
        size_t angle = (size_t)positions[row] * half + i;
        float c = is_v ? 1 : cos[angle], s = is_v ? 0 : sin[angle];
        float a = __bfloat162float(from[i]), b = __bfloat162float(from[i + half]);
        to[i] = __float2bfloat16(a * c - b * s);
        to[i + half] = __float2bfloat16(b * c + a * s);
    }
}

constexpr int THREADS = 256;

extern "C" __global__ void __launch_bounds__(THREADS)
    rope(const bf16* qkv, const float* cos, const float* sin,
         const int* positions, const int* slots, bf16* q, bf16* k_cache,
         bf16* v_cache, int rows, int n_heads, int n_kv_heads, int head_dim, int max_len) {
    wait_for_predecessor();
    let_successor_start();
    int heads = n_heads + 2 * n_kv_heads, half = head_dim / 2, threads_a_head = half / 8;
    int index = blockIdx.x * THREADS + threadIdx.x;
    int i = index % threads_a_head * 8, head = index / threads_a_head % heads, row = index / threads_a_head / heads;
    if (row >= rows || positions[row] < 0) return;

    const bf16* from = qkv + ((size_t)row * heads + head) * head_dim;
    Eight a = load_eight(from + i), b = load_eight(from + half + i);
    if (head < n_heads + n_kv_heads) {  // a query or a key
        size_t angles = (size_t)positions[row] * half + i;
        Eight c = load_eight(cos + angles), s = load_eight(sin + angles);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float rotated = a.v[j] * c.v[j] - b.v[j] * s.v[j];
            b.v[j] = b.v[j] * c.v[j] + a.v[j] * s.v[j];
            a.v[j] = rotated;
        }
    }
    bf16* to;
    if (head < n_heads) {
        to = q + ((size_t)row * n_heads + head) * head_dim;
    } else {
        bf16* cache = head < n_heads + n_kv_heads ? k_cache : v_cache;
        int kv_head = (head - n_heads) % n_kv_heads;
        to = cache + (((size_t)slots[row] * n_kv_heads + kv_head) * max_len + positions[row]) * head_dim;
    }
    store_eight(to + i, a);
    store_eight(to + half + i, b);
}
