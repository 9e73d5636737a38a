// Shared by all kernels: short names for types, access to eight elements at a time, sums and maxima over a warp, and
// how a block finds out that it is the last one.
#pragma once
#include "ptx.cuh"

typedef __nv_bfloat16 bf16;

#ifndef INFINITY  // NVRTC has no <math.h>
#define INFINITY __int_as_float(0x7f800000)
#endif

constexpr unsigned ALL_LANES = 0xffffffffu;

// Eight neighbouring elements of an array, as floats: one 16-byte load of bf16, or two of float.
struct Eight {
    float v[8];
};

__device__ __forceinline__ Eight unpack(uint4 bits) {
    const unsigned pairs[4] = {bits.x, bits.y, bits.z, bits.w};
    Eight out;
#pragma unroll
    for (int i = 0; i < 4; i++) {  // a bf16 is the upper half of a float
        out.v[2 * i] = __uint_as_float(pairs[i] << 16);
        out.v[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
    }
    return out;
}

__device__ __forceinline__ unsigned pack_two(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<unsigned*>(&pair);
}

// p must be aligned to 16 bytes.
__device__ __forceinline__ Eight load_eight(const bf16* p) { return unpack(*reinterpret_cast<const uint4*>(p)); }

__device__ __forceinline__ Eight load_eight(const float* p) {
    float4 a = reinterpret_cast<const float4*>(p)[0], b = reinterpret_cast<const float4*>(p)[1];
    return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}

__device__ __forceinline__ void store_eight(bf16* p, const Eight& e) {
    *reinterpret_cast<uint4*>(p) = make_uint4(pack_two(e.v[0], e.v[1]), pack_two(e.v[2], e.v[3]),
                                              pack_two(e.v[4], e.v[5]), pack_two(e.v[6], e.v[7]));
}

__device__ __forceinline__ void store_eight(float* p, const Eight& e) {
    reinterpret_cast<float4*>(p)[0] = make_float4(e.v[0], e.v[1], e.v[2], e.v[3]);
    reinterpret_cast<float4*>(p)[1] = make_float4(e.v[4], e.v[5], e.v[6], e.v[7]);
}

// The sum over a warp. Every lane gets the same bits, because two lanes that exchange numbers add the same two.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int bit = 16; bit; bit /= 2) x += __shfl_xor_sync(ALL_LANES, x, bit);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int bit = 16; bit; bit /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, bit));
    return x;
}

// The maximum, or the sum, over four lanes 4 g to 4 g + 3. In what an mma gives, they share a row.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// True in the last of `blocks` thread blocks that reach this point. Every thread calls it after its last write. The
// last block can then read what all blocks have written. `arrivals` is 0 before and after. One thread's fences are
// enough: a fence covers what the other threads wrote before the barrier, or read after it.
__device__ __forceinline__ bool is_last_block(unsigned* arrivals, unsigned blocks) {
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicAdd(arrivals, 1u) == blocks - 1;
        if (last) {
            __threadfence();
            *arrivals = 0;
        }
    }
    __syncthreads();
    return last;
}

// For a very negative x, exp overflows to infinity and the quotient is 0, as it should be.
__device__ __forceinline__ float silu(float x) { return x / (1 + expf(-x)); }
