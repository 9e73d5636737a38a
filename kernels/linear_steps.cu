// Two steps between the naive matrix product (linear_naive in linear.cu) and the fast one (linear_few.cu). They are
// here to be read; the model does not run them. out = x w^T, without tensor cores:
//   w (n_out, width) bf16, x (T, width) bf16, out (T, n_out) bf16; width a multiple of 32, any n_out and T
//
// What each step gains, computed (not measured) for the gate and up matrix of the 8B model (28,672 x 4,096) and 64
// tokens. Reading the matrix, 234.9 MB, takes 54.6 microseconds at 4.3 TB/s. The product has 15.0 GFLOP.
//
//                        bytes requested    reads of shared memory
//                        of w      of x     for a multiply-add
//   linear_naive         15.0 GB   15.0 GB  none; each output reads its row of w and its row of x again
//   linear_tile           470 MB    470 MB  2; each element that is loaded is used by 32 threads
//   linear_registers      235 MB    235 MB  1/2; a thread uses each element it reads four times
//   linear_few            235 MB    470 MB  none; tensor cores take their operands from registers
//
// An SM does 128 multiply-adds a cycle and reads 32 floats a cycle from shared memory. So for each cycle of
// multiply-adds linear_tile reads shared memory for 8 cycles, linear_registers for 2. The multiply-adds alone take 224
// microseconds at 67 TFLOP/s, the peak of an H200 without tensor cores. With tensor cores, at 800 TFLOP/s, they take
// 19, less than the weights take to arrive.
#include "common.cuh"

// Step 1: a tile in shared memory. A block computes 32 outputs of 32 tokens, one a thread. It loads each element of w
// once for its 32 tokens, and each element of x once for its 32 outputs.
// Launch: (n_out / 32, T / 32) blocks of 1,024 threads, both rounded up.
constexpr int TILE = 32;  // outputs and tokens of a block, and channels in shared memory at a time

extern "C" __global__ void __launch_bounds__(TILE * TILE)
    linear_tile(const bf16* w, const bf16* x, bf16* out, int n_out, int width, int n_tokens) {
    // Column 32 is padding. It puts the rows into different banks, so that 32 threads can read a column at once.
    __shared__ float w_tile[TILE][TILE + 1], x_tile[TILE][TILE + 1];
    int row = threadIdx.x / TILE, column = threadIdx.x % TILE;
    int first_output = blockIdx.x * TILE, first_token = blockIdx.y * TILE;
    int w_row = first_output + row, x_row = first_token + row;  // this thread loads one element of each
    float sum = 0;
    for (int channel = column; channel < width; channel += TILE) {
        w_tile[row][column] = w_row < n_out ? __bfloat162float(w[(size_t)w_row * width + channel]) : 0;
        x_tile[row][column] = x_row < n_tokens ? __bfloat162float(x[(size_t)x_row * width + channel]) : 0;
        __syncthreads();
        for (int k = 0; k < TILE; k++) sum += w_tile[column][k] * x_tile[row][k];
        __syncthreads();  // before the next tiles overwrite these
    }
    int output = first_output + column, token = first_token + row;
    if (output < n_out && token < n_tokens) out[(size_t)token * n_out + output] = __float2bfloat16(sum);
}

// Step 2: a tile of sums in registers. A block computes 64 outputs of 64 tokens, a thread 4 outputs of 4 tokens. For
// each channel a thread reads 4 + 4 elements from shared memory and does 16 multiply-adds. (linear_few.cu keeps its
// sums in registers as well. There the 32 lanes of a warp hold a tile of 8 outputs and 16 tokens together.)
// Launch: (n_out / 64, T / 64) blocks of 256 threads, both rounded up.
constexpr int LARGE_TILE = 64;  // outputs and tokens of a block
constexpr int CHANNELS = 16;    // in shared memory at a time
constexpr int SIDE = 16;        // the block's threads form a square of 16 x 16
constexpr int PER_THREAD = 4;   // outputs and tokens of a thread: every 16th of the block

// Loads 16 channels, from `channel` on, of rows `first` to first + 63 of w or x. Rows past the end become zero.
__device__ __forceinline__ void load_tile(float (&tile)[LARGE_TILE][CHANNELS + 1], const bf16* rows, int first,
                                          int n_rows, int channel, int width) {
    for (int i = threadIdx.x; i < LARGE_TILE * CHANNELS; i += SIDE * SIDE) {
        int row = i / CHANNELS, c = i % CHANNELS;
        bool valid = first + row < n_rows;
        tile[row][c] = valid ? __bfloat162float(rows[(size_t)(first + row) * width + channel + c]) : 0;
    }
}

extern "C" __global__ void __launch_bounds__(SIDE * SIDE)
    linear_registers(const bf16* w, const bf16* x, bf16* out, int n_out, int width, int n_tokens) {
    __shared__ float w_tile[LARGE_TILE][CHANNELS + 1], x_tile[LARGE_TILE][CHANNELS + 1];
    int row = threadIdx.x / SIDE, column = threadIdx.x % SIDE;
    int first_output = blockIdx.x * LARGE_TILE, first_token = blockIdx.y * LARGE_TILE;
    float sums[PER_THREAD][PER_THREAD] = {};  // (tokens, outputs)
    for (int channel = 0; channel < width; channel += CHANNELS) {
        load_tile(w_tile, w, first_output, n_out, channel, width);
        load_tile(x_tile, x, first_token, n_tokens, channel, width);
        __syncthreads();
        for (int k = 0; k < CHANNELS; k++) {
            float a[PER_THREAD], b[PER_THREAD];
#pragma unroll
            for (int i = 0; i < PER_THREAD; i++) a[i] = x_tile[row + i * SIDE][k], b[i] = w_tile[column + i * SIDE][k];
#pragma unroll
            for (int i = 0; i < PER_THREAD * PER_THREAD; i++) {
                sums[i / PER_THREAD][i % PER_THREAD] += a[i / PER_THREAD] * b[i % PER_THREAD];
            }
        }
        __syncthreads();  // before the next tiles overwrite these
    }
#pragma unroll
    for (int i = 0; i < PER_THREAD * PER_THREAD; i++) {
        int token = first_token + row + i / PER_THREAD * SIDE, output = first_output + column + i % PER_THREAD * SIDE;
        float sum = sums[i / PER_THREAD][i % PER_THREAD];
        if (token < n_tokens && output < n_out) out[(size_t)token * n_out + output] = __float2bfloat16(sum);
    }
}
