// These kernels measure the limits of a GPU. The benchmark compares the other kernels with them; the model does not run
// them.
//   read_only   reads n pieces of 16 bytes, as linear.cu reads weights, and keeps nothing: the bandwidth of reading
//   nothing     does nothing: the cost of a launch and of the gap after it
//   grid_sync   synchronises all blocks `meetings` times: the cost of a barrier of all blocks inside one kernel
// Launch: read_only and grid_sync with 256 threads, and no more blocks than can run at the same time.
#include "common.cuh"

constexpr int PIECES = 8;  // loads of 16 bytes that a thread has in flight

extern "C" __global__ void read_only(const bf16* weights, unsigned* out, long long n) {
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
    atomicXor(out, seen);  // otherwise the compiler would drop the loads
}

extern "C" __global__ void nothing() {
    wait_for_predecessor();
    let_successor_start();
}

// count is 0 before the launch, and blocks * meetings after it.
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
