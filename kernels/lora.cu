// out += B (A x) for the rows that have a LoRA adapter, each row with its own adapter: the two thin products of
// llama3/model/lora.py.
//   x (T, width) bf16; adapter (T): index of the row's adapter, -1: none
//   a (n, rank, width) bf16; b (n, n_out, rank) bf16, already multiplied by the adapter's scale
//   t (T, rank) float: A x, written by lora_down and read by lora_up
//   rank is a multiple of 8; adapters of a lower rank are padded with zeros. width is a multiple of 64.
//   out: rows of `stride` elements; in each row, the first n_out elements from `out` on change. (`out` may point into a
//   row, because queries, keys and values share one.)
//
// Launch: lora_down (rank / 8, T) blocks of 256 threads, a warp for each element of t; lora_up (n_out / 256, T) blocks
//         of 256 threads, n_out / 256 rounded up, a thread for each output.
// Bytes:  2 rank (width + n_out) for each row and matrix: 0.26 MB at rank 16 for a matrix of 4,096 x 4,096, 0.8 % of
//         the matrix itself.
#include "common.cuh"

// The naive kernel: both products in one kernel, with a thread for each output of a row; out is float.
extern "C" __global__ void lora_naive(const bf16* a, const bf16* b, const bf16* x, const int* adapter, float* out,
                                      int rank, int width, int n_out, int stride) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
    if (i >= n_out || adapter[row] < 0) return;
    for (int r = 0; r < rank; r++) {
        float t = 0;
        const bf16* a_row = a + ((size_t)adapter[row] * rank + r) * width;
        for (int j = 0; j < width; j++) t += __bfloat162float(a_row[j]) * __bfloat162float(x[(size_t)row * width + j]);
        out[(size_t)row * stride + i] += __bfloat162float(b[((size_t)adapter[row] * n_out + i) * rank + r]) * t;
    }
}

constexpr int THREADS = 256, WARPS = THREADS / 32;

extern "C" __global__ void __launch_bounds__(THREADS)
    lora_down(const bf16* a, const bf16* x, const int* adapter, float* t, int rank, int width) {
    wait_for_predecessor();
    let_successor_start();
    int r = blockIdx.x * WARPS + threadIdx.x / 32, row = blockIdx.y;
    if (adapter[row] < 0) return;
    const bf16 *a_row = a + ((size_t)adapter[row] * rank + r) * width, *x_row = x + (size_t)row * width;
    float sum = 0;
    for (int j = threadIdx.x % 32 * 8; j < width; j += 32 * 8) {
        Eight e = load_eight(a_row + j), f = load_eight(x_row + j);
#pragma unroll
        for (int k = 0; k < 8; k++) sum += e.v[k] * f.v[k];
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) t[(size_t)row * rank + r] = sum;
}

__device__ __forceinline__ void add(float* out, float x) { *out += x; }
__device__ __forceinline__ void add(bf16* out, float x) { *out = __float2bfloat16(__bfloat162float(*out) + x); }

template <typename Out>
__device__ __forceinline__ void up(const bf16* b, const float* t, const int* adapter, Out* out, int rank, int n_out,
                                   int stride) {
    wait_for_predecessor();
    let_successor_start();
    int i = blockIdx.x * THREADS + threadIdx.x, row = blockIdx.y;
    if (i >= n_out || adapter[row] < 0) return;
    const bf16* b_row = b + ((size_t)adapter[row] * n_out + i) * rank;
    float sum = 0;
    for (int r = 0; r < rank; r += 8) {
        Eight e = load_eight(b_row + r), f = load_eight(t + (size_t)row * rank + r);
#pragma unroll
        for (int k = 0; k < 8; k++) sum += e.v[k] * f.v[k];
    }
    add(out + (size_t)row * stride + i, sum);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    lora_up(const bf16* b, const float* t, const int* adapter, bf16* out, int rank, int n_out, int stride) {
    up(b, t, adapter, out, rank, n_out, stride);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    lora_up_float(const bf16* b, const float* t, const int* adapter, float* out, int rank, int n_out, int stride) {
    up(b, t, adapter, out, rank, n_out, stride);
}
