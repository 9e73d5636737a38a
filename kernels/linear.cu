// Products of the weight matrices with one row: out = w x. (2 to 32 rows: linear_few.cu. More rows: cuBLAS.)
//   w (n_out, width) bf16, or rows of codes (weights.cuh: WEIGHT); x (width) bf16; out (n_out); any n_out
//   width is a multiple of 8 with bf16 (the model's: of 64), of 64 with codes of 8 bits, and of 128 with codes of 4
// Five kernels (a sixth is in qkv.cu). They differ in where x comes from and in what they do with a sum:
//   linear, linear_float     x is given; store the sum as bf16, or as float
//   linear_add               add the sum to a float of the residual stream: the products with wo and w2
//   norm_linear              x is the RMSNorm of the residual stream; store the sum as float: logits
//   norm_swiglu              the same x; store silu(gate sum) * up sum: two matrices in one kernel
//
// Launch: n_out / 8 blocks of 256 threads, rounded up, a warp for each output (linear.cuh; linear_codes.cuh for codes).
//         Kernels that normalise take 2 width bytes of dynamic shared memory. With codes all kernels do, for width
//         rounded up to what a warp multiplies in one pass: 2,048 columns of 8 bits, 4,096 of 4 bits.
// Bytes:  2 n_out width. At 4.3 TB/s the matrices of the 8B model take: wo (4,096 x 4,096) 33.6 MB, 7.8 microseconds;
//         gate and up 234.9 MB, 54.6; down 117.4 MB, 27.3; the output matrix 1,050.7 MB, 244. Codes of 8 bits have half
//         as many bytes, codes of 4 bits and their scales 0.266 times as many.
#include "linear_codes.cuh"

// The naive kernel: a thread for each output of a row; x (T, width), out (T, n_out). Next: linear_steps.cu.
extern "C" __global__ void linear_naive(const WEIGHT* w, const bf16* x, bf16* out, int n_out, int width) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n_out) return;
    const WEIGHT* w_row = row_of(w, i, width);
    const bf16* x_row = x + (size_t)blockIdx.y * width;
    float sum = 0;
    for (int j = 0; j < width; j++) sum += entry(w_row, j, width) * __bfloat162float(x_row[j]);
    out[(size_t)blockIdx.y * n_out + i] = __float2bfloat16(sum);
}

__device__ __forceinline__ int output_of_this_warp() { return blockIdx.x * WARPS + threadIdx.x / 32; }

// True in the lane that stores the warp's sum.
__device__ __forceinline__ bool stores(int i, int n_out) { return threadIdx.x % 32 == 0 && i < n_out; }

__device__ __forceinline__ float product(const WEIGHT* w, const bf16* x, int n_out, int width) {
    WeightRow<WEIGHT> row = begin_load(w, output_of_this_warp(), n_out, width);
    wait_for_predecessor();
    let_successor_start();
    return dot(row, prepared(WEIGHT(), x, width));
}

extern "C" __global__ void __launch_bounds__(THREADS)
    linear(const WEIGHT* w, const bf16* x, bf16* out, int n_out, int width) {
    float sum = product(w, x, n_out, width);
    int i = output_of_this_warp();
    if (stores(i, n_out)) out[i] = __float2bfloat16(sum);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    linear_float(const WEIGHT* w, const bf16* x, float* out, int n_out, int width) {
    float sum = product(w, x, n_out, width);
    int i = output_of_this_warp();
    if (stores(i, n_out)) out[i] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    linear_add(const WEIGHT* w, const bf16* x, float* out, int n_out, int width) {
    float sum = product(w, x, n_out, width);
    int i = output_of_this_warp();
    if (stores(i, n_out)) out[i] += sum;  // no other thread writes this element
}

extern "C" __global__ void __launch_bounds__(THREADS)
    norm_linear(const WEIGHT* w, const float* x, const bf16* norm, float* out, int n_out,
                int width, float eps) {
    int i = output_of_this_warp();
    WeightRow<WEIGHT> row = begin_load(w, i, n_out, width);
    NormWeight norm_weight = begin_norm(norm, width);
    wait_for_predecessor();
    let_successor_start();
    float sum = dot(row, normed(WEIGHT(), x, norm_weight, width, eps));
    if (stores(i, n_out)) out[i] = sum;
}

// w13 (2 n_out, width): the rows of gate, then those of up
extern "C" __global__ void __launch_bounds__(THREADS)
    norm_swiglu(const WEIGHT* w13, const float* x, const bf16* norm, bf16* out, int n_out,
                int width, float eps) {
    int i = output_of_this_warp();
    WeightRow<WEIGHT> gate_row = begin_load(w13, i, n_out, width);
    WeightRow<WEIGHT> up_row = begin_load(row_of(w13, n_out, width), i, n_out, width);
    NormWeight norm_weight = begin_norm(norm, width);
    wait_for_predecessor();
    let_successor_start();
    const bf16* h = normed(WEIGHT(), x, norm_weight, width, eps);
    float gate = dot(gate_row, h), up = dot(up_row, h);
    if (stores(i, n_out)) out[i] = __float2bfloat16(silu(gate) * up);
}
