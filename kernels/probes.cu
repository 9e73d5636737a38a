// What this GPU can do at best, for the benchmark that says how near to it the other kernels come: no model needs these.
//   read_only   reads n pieces of 16 bytes, as linear.cu reads weights, and keeps nothing: the bandwidth of reading
//   nothing     does nothing: what a launch and the gap behind it cost
//   grid_sync   lets all blocks meet `meetings` times: what a meeting inside one kernel costs instead
// Launch: read_only and grid_sync with no more blocks than run at once, 256 threads.
#include "common.cuh"

constexpr int PIECES = 8;  // 16 bytes each, on their way in a thread

extern "C" __global__ void read_only(const bf16* __restrict__ weights, unsigned* out, long long n) {
    const uint4* data = reinterpret_cast<const uint4*>(weights);
    long long step = (long long)gridDim.x * blockDim.x, i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    unsigned seen = 0;
    for (; i + (PIECES - 1) * step < n; i += PIECES * step) {
        uint4 piece[PIECES];
#pragma unroll
        for (int j = 0; j < PIECES; j++) piece[j] = load_once(data + i + j * step);
#pragma unroll
        for (int j = 0; j < PIECES; j++) seen ^= piece[j].x ^ piece[j].y ^ piece[j].z ^ piece[j].w;
    }
    for (; i < n; i += step) {
        uint4 piece = load_once(data + i);
        seen ^= piece.x ^ piece.y ^ piece.z ^ piece.w;
    }
    atomicXor(out, seen);  // without a use of what was read nothing would be read
}

extern "C" __global__ void nothing() {
    wait_for_predecessor();
    let_successor_start();
}

// count is 0 before the launch, and blocks * meetings behind it.
extern "C" __global__ void grid_sync(unsigned* count, int meetings) {
    for (int i = 1; i <= meetings; i++) {
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence();
            atomicAdd(count, 1u);
            while (*(volatile unsigned*)count < gridDim.x * i) {}
            __threadfence();
        }
        __syncthreads();
    }
}
