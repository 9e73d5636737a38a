// The parts of CUDA C++ that C++ lacks, so that g++ compiles a kernel file unchanged: keywords, built-in variables,
// vector types, intrinsics. g++ reads this file first (-include). It has only what the kernels use; any other name of
// CUDA does not compile.
#pragma once
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <csignal>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ static inline  // static: then the linker treats the shared arrays of all functions alike
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section("shared_arrays")))

#include "context.h"
#include "fibers.h"
#include "memory.h"
#include "warp.h"
#include "warpgroup.h"

#define threadIdx (emulator::current->thread)
#define blockIdx (emulator::block.index)
#define blockDim (emulator::block.size)
#define gridDim (emulator::block.grid)

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

template <class To, class From>
To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline unsigned __float_as_uint(float f) { return same_bits<unsigned>(f); }
inline int __float_as_int(float f) { return same_bits<int>(f); }
inline float __uint_as_float(unsigned u) { return same_bits<float>(u); }
inline float __int_as_float(int i) { return same_bits<float>(i); }

inline long long __double_as_longlong(double d) { return same_bits<long long>(d); }
inline double __longlong_as_double(long long i) { return same_bits<double>(i); }

inline double __dmul_rn(double x, double y) { return x * y; }  // build.py forbids g++ to fuse multiply and add
inline double __dadd_rn(double x, double y) { return x + y; }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t(a) * b >> 32); }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned select) {  // each digit of `select` names one of 8 bytes
    uint64_t bytes = uint64_t(b) << 32 | a;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) out |= unsigned(bytes >> 8 * (select >> 4 * i & 7) & 0xff) << 8 * i;
    return out;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
using std::max;
using std::min;

#include "cuda_bf16.h"
#include "pairs.h"
#include "launch.h"
