// Everything from the residual stream to attention for one row, in one launch: RMSNorm, the product with wqkv, rope,
// and the write of keys and values to the cache. (More rows, or a row with a LoRA adapter, take several launches:
// rms_norm.cu, a product, rope.cu. The tests compare this kernel with those.)
//   wqkv ((n_heads + 2 n_kv_heads) head_dim, width) bf16, or rows of codes (weights.cuh: WEIGHT); x (width) float;
//   norm (width) bf16
//   cos, sin, position, slot, q, k_cache, v_cache: as in rope.cu, for one row
// Rope rotates channels i and i + head_dim / 2 of a head together. So four of a block's eight warps take neighbouring
// channels in the first half of a head, and the other four their partners in the second half.
//
// Launch: (n_heads + 2 n_kv_heads) head_dim / 8 blocks of 256 threads, a warp for each channel of a head (linear.cuh;
//         linear_codes.cuh for codes), with 2 width bytes of dynamic shared memory; with codes as linear.cu says.
// Bytes:  2 (n_heads + 2 n_kv_heads) head_dim width: 50.3 MB for the 8B model, 11.7 microseconds at 4.3 TB/s.
#include "linear_codes.cuh"

constexpr int PAIRS = WARPS / 2;  // of channels in a block

extern "C" __global__ void __launch_bounds__(THREADS)
    norm_qkv_rope(const WEIGHT* wqkv, const float* x, const bf16* norm,
                  const float* cos, const float* sin, const int* position, const int* slot,
                  bf16* q, bf16* k_cache, bf16* v_cache, int n_heads, int n_kv_heads, int head_dim, int max_len,
                  int width, float eps) {
    __shared__ float sums[WARPS];
    int warp = threadIdx.x / 32, half = head_dim / 2, n_out = (n_heads + 2 * n_kv_heads) * head_dim;
    int head = blockIdx.x * PAIRS / half, first = blockIdx.x * PAIRS % half;  // a block has pairs of one head only
    int output = head * head_dim + first + warp % PAIRS + warp / PAIRS * half;
    WeightRow<WEIGHT> row = begin_load(wqkv, output, n_out, width);
    NormWeight norm_weight = begin_norm(norm, width);
    wait_for_predecessor();
    let_successor_start();
    // This thread's pair, and what rope needs for it. It is loaded now, so that the loads overlap with the product.
    int i = first + threadIdx.x % PAIRS, at = *position;
    bool rotates = head < n_heads + n_kv_heads && at >= 0, is_v = head >= n_heads + n_kv_heads;
    float c = rotates ? cos[(size_t)at * half + i] : 1, s = rotates ? sin[(size_t)at * half + i] : 0;
    size_t kv_row = ((size_t)*slot * n_kv_heads + (head - n_heads) % n_kv_heads) * max_len + at;

    float sum = dot(row, normed(WEIGHT(), x, norm_weight, width, eps));
    if (threadIdx.x % 32 == 0) sums[warp] = __bfloat162float(__float2bfloat16(sum));  // rounded, as a product is stored
    __syncthreads();
    if (threadIdx.x >= PAIRS || at < 0) return;  // a padding row
    float a = sums[threadIdx.x], b = sums[threadIdx.x + PAIRS];
    bf16* to = head < n_heads ? q + (size_t)head * head_dim : (is_v ? v_cache : k_cache) + kv_row * head_dim;
    to[i] = __float2bfloat16(a * c - b * s);
    to[i + half] = __float2bfloat16(b * c + a * s);
}
