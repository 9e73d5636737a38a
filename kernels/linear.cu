// Products of the weight matrices with one row: out = w x.  (Of 2 to 64 rows: linear_few.cu; of more: cuBLAS.)
//   w (n_out, width) bf16, x (width) bf16, out (n_out); width a multiple of 8 (CUDA shapes: of 64), any n_out
// Six kernels, which differ in where x comes from and in what they do with a sum:
//   linear, linear_float     x as it is; store as bf16, or as float
//   linear_add               add to a float: the two products that end in the residual stream
//   norm_linear, norm_linear_float     x = RMSNorm of the residual stream: queries, keys and values; logits
//   norm_swiglu              the same, and silu(gate sum) * up sum: two matrices at once
// RMSNorm costs no launch of its own: every block computes it anew, 6 width bytes out of the second-level cache.
//
// Launch: n_out / 8 blocks of 256 threads: a warp an output, 16 bytes of w a lane at a time, four loads in flight
//         while the four before them are multiplied. The first four are under way before the predecessor has ended:
//         weights depend on nobody. Kernels that normalise take 2 width bytes of dynamic shared memory.
// Bytes:  2 n_out width. At 4.3 TB/s: queries, keys and values of the 8B model (6,144 x 4,096) 50.3 MB, 11.7
//         microseconds; wo 33.6 MB, 7.8; gate and up 234.9 MB, 54.6; down 117.4 MB, 27.3; the output matrix
//         1,050.7 MB, 244.
#include "rms_norm.cuh"

// The same as linear, a thread an output of a row; x (T, width), out (T, n_out).
extern "C" __global__ void linear_naive(const bf16* w, const bf16* x, bf16* out, int n_out, int width) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n_out) return;
    const bf16 *w_row = w + (size_t)i * width, *x_row = x + (size_t)blockIdx.y * width;
    float sum = 0;
    for (int j = 0; j < width; j++) sum += __bfloat162float(w_row[j]) * __bfloat162float(x_row[j]);
    out[(size_t)blockIdx.y * n_out + i] = __float2bfloat16(sum);
}

constexpr int IN_FLIGHT = 4;          // loads of a lane
constexpr int STEP = 32 * IN_FLIGHT;  // pieces of 16 bytes a warp has in hand

// A warp's row of w, and the part of it that is on its way.
struct Row {
    const uint4* pieces;
    int n_pieces;  // none for a row past the end
    uint4 loaded[IN_FLIGHT];
};

__device__ __forceinline__ void load(uint4 (&into)[IN_FLIGHT], const Row& row, int first) {
#pragma unroll
    for (int j = 0; j < IN_FLIGHT; j++) {
        int i = first + 32 * j;
        into[j] = i < row.n_pieces ? load_once(row.pieces + i) : make_uint4(0, 0, 0, 0);
    }
}

__device__ __forceinline__ Row start_row(const bf16* w, int row, int n_out, int width) {
    Row r;
    r.pieces = reinterpret_cast<const uint4*>(w + (size_t)row * width);
    r.n_pieces = row < n_out ? width / 8 : 0;
    load(r.loaded, r, threadIdx.x % 32);
    return r;
}

// The product with x, in every lane.
__device__ __forceinline__ float finish_row(Row& row, const bf16* x) {
    float sum = 0;
    for (int first = threadIdx.x % 32; first < row.n_pieces; first += STEP) {
        uint4 next[IN_FLIGHT];
        load(next, row, first + STEP);
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; j++) {
            int i = first + 32 * j;
            if (i < row.n_pieces) {
                Eight a = unpack(row.loaded[j]), b = load_eight(x + 8 * i);
#pragma unroll
                for (int k = 0; k < 8; k++) sum += a.v[k] * b.v[k];
            }
            row.loaded[j] = next[j];
        }
    }
    return warp_sum(sum);
}

// RMSNorm of x, in shared memory.
__device__ __forceinline__ const bf16* normed(const float* x, const bf16* norm, int width, float eps) {
    bf16* out = reinterpret_cast<bf16*>(dynamic_shared());
    normalise(x, norm, out, width, eps);
    __syncthreads();
    return out;
}

__device__ __forceinline__ int output_of_this_warp() { return blockIdx.x * WARPS + threadIdx.x / 32; }

// Is this the lane that stores the warp's sum?
__device__ __forceinline__ bool stores(int i, int n_out) { return threadIdx.x % 32 == 0 && i < n_out; }

__device__ __forceinline__ float product(const bf16* w, const bf16* x, int n_out, int width) {
    Row row = start_row(w, output_of_this_warp(), n_out, width);
    wait_for_predecessor();
    let_successor_start();
    return finish_row(row, x);
}

__device__ __forceinline__ float norm_product(const bf16* w, const float* x, const bf16* norm, int n_out, int width,
                                              float eps) {
    Row row = start_row(w, output_of_this_warp(), n_out, width);
    wait_for_predecessor();
    let_successor_start();
    return finish_row(row, normed(x, norm, width, eps));
}

extern "C" __global__ void __launch_bounds__(THREADS)
    linear(const bf16* __restrict__ w, const bf16* x, bf16* out, int n_out, int width) {
    float sum = product(w, x, n_out, width);
    int i = output_of_this_warp();
    if (stores(i, n_out)) out[i] = __float2bfloat16(sum);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    linear_float(const bf16* __restrict__ w, const bf16* x, float* out, int n_out, int width) {
    float sum = product(w, x, n_out, width);
    int i = output_of_this_warp();
    if (stores(i, n_out)) out[i] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    linear_add(const bf16* __restrict__ w, const bf16* x, float* out, int n_out, int width) {
    float sum = product(w, x, n_out, width);
    int i = output_of_this_warp();
    if (stores(i, n_out)) out[i] += sum;  // its only owner
}

extern "C" __global__ void __launch_bounds__(THREADS)
    norm_linear(const bf16* __restrict__ w, const float* x, const bf16* __restrict__ norm, bf16* out, int n_out,
                int width, float eps) {
    float sum = norm_product(w, x, norm, n_out, width, eps);
    int i = output_of_this_warp();
    if (stores(i, n_out)) out[i] = __float2bfloat16(sum);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    norm_linear_float(const bf16* __restrict__ w, const float* x, const bf16* __restrict__ norm, float* out, int n_out,
                      int width, float eps) {
    float sum = norm_product(w, x, norm, n_out, width, eps);
    int i = output_of_this_warp();
    if (stores(i, n_out)) out[i] = sum;
}

// w13 (2 n_out, width): the gate's rows, then up's
extern "C" __global__ void __launch_bounds__(THREADS)
    norm_swiglu(const bf16* __restrict__ w13, const float* x, const bf16* __restrict__ norm, bf16* out, int n_out,
                int width, float eps) {
    int i = output_of_this_warp();
    Row gate_row = start_row(w13, i, n_out, width), up_row = start_row(w13 + (size_t)n_out * width, i, n_out, width);
    wait_for_predecessor();
    let_successor_start();
    const bf16* h = normed(x, norm, width, eps);
    float gate = finish_row(gate_row, h), up = finish_row(up_row, h);
    if (stores(i, n_out)) out[i] = __float2bfloat16(silu(gate) * up);
}
