// One small kernel for each thing the emulation offers, used as it should be.
#include "ptx.cuh"

typedef __nv_bfloat16 bf16;

extern "C" __global__ void copy(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i];
}

extern "C" __global__ void increment(float* x) { x[threadIdx.x] += 1; }

// y[block] = the sum of n numbers, by way of every lane and every warp
extern "C" __global__ void block_sum(const float* x, float* y, int n) {
    __shared__ float part[32];
    float sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[blockIdx.x * n + i];
    for (int bit = 16; bit; bit /= 2) sum += __shfl_xor_sync(~0u, sum, bit);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (int i = 0; i < blockDim.x / 32; i++) sum += part[i];
    if (threadIdx.x == 0) y[blockIdx.x] = sum;
}

// The same block by block, into one number
extern "C" __global__ void count_positive(const float* x, int* y) {
    unsigned ballot = __ballot_sync(~0u, x[blockIdx.x * blockDim.x + threadIdx.x] > 0);
    if (threadIdx.x % 32 == 0) atomicAdd(y, __popc(ballot));
}

// Each half of a warp on its own: row 0 the lane above, row 1 the lane below, row 2 the half's first lane
extern "C" __global__ void shuffle_halves(const int* x, int* y) {
    int lane = threadIdx.x;
    unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    if (lane < 16) {
        y[lane] = __shfl_xor_sync(half, x[lane], 1);
    } else {
        y[lane] = __shfl_xor_sync(half, x[lane], 2);
    }
    y[32 + lane] = __shfl_up_sync(~0u, x[lane], 3);
    y[64 + lane] = __shfl_down_sync(~0u, x[lane], 3);
    y[96 + lane] = __shfl_sync(half, x[lane], lane & 16);
}

// y (16, 8) = a (16, 16) b (16, 8), by cp.async, ldmatrix, mma
extern "C" __global__ void __launch_bounds__(32) tensor_product(const bf16* a, const bf16* b, float* y) {
    bf16* tile_a = reinterpret_cast<bf16*>(dynamic_shared());  // (16, 16)
    bf16* tile_b = tile_a + 16 * 16;                           // (16, 8)
    int lane = threadIdx.x;
    copy_async(tile_a + 8 * lane, a + 8 * lane);
    commit_copies();
    if (lane < 16) copy_async(tile_b + 8 * lane, b + 8 * lane);
    commit_copies();
    wait_copies<0>();
    __syncthreads();

    unsigned fragment_a[4], fragment_b[4];
    load_matrices(fragment_a, tile_a + lane % 16 * 16 + lane / 16 * 8);
    load_matrices_transposed(fragment_b, tile_b + lane % 16 * 8);
    float d[4] = {};
    mma(d, fragment_a, {fragment_b[0], fragment_b[1]});
    int row = lane / 4, column = lane % 4 * 2;
    y[row * 8 + column] = d[0];
    y[row * 8 + column + 1] = d[1];
    y[(row + 8) * 8 + column] = d[2];
    y[(row + 8) * 8 + column + 1] = d[3];
}

// Three groups of copies, each looked at as soon as it has landed; the last ones are zeros
extern "C" __global__ void __launch_bounds__(32) pipeline(const float* x, float* y) {
    __shared__ __align__(16) float stage[3][128];
    for (int i = 0; i < 3; i++) {
        copy_async(stage[i] + 4 * threadIdx.x, x + 128 * i + 4 * threadIdx.x, i < 2);
        commit_copies();
    }
    wait_copies<2>();
    y[threadIdx.x] = stage[0][4 * threadIdx.x];
    wait_copies<1>();
    y[32 + threadIdx.x] = stage[1][4 * threadIdx.x];
    wait_copies<0>();
    y[64 + threadIdx.x] = stage[2][4 * threadIdx.x];
}

// y = x + 1: weights may be read before the wait, x not
extern "C" __global__ void after_the_wait(const float* weights, const float* x, float* y) {
    float w = weights[threadIdx.x];
    wait_for_predecessor();
    y[threadIdx.x] = x[threadIdx.x] + w;
}

// A token's position lives in device memory: a replayed graph sees it grow
extern "C" __global__ void append(const float* x, float* out, int* position) {
    out[*position] = x[0];
    *position += 1;
}
