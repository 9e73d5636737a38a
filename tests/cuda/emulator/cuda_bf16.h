// The names of NVIDIA's cuda_bf16.h that the kernels use. There are no operators and no implicit conversions, because
// the kernels call conversions by name.
#pragma once

struct __nv_bfloat16 {
    unsigned short bits;  // the upper half of a float
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

inline float __bfloat162float(__nv_bfloat16 h) { return __uint_as_float(unsigned(h.bits) << 16); }

inline __nv_bfloat16 __float2bfloat16(float f) {
    unsigned bits = __float_as_uint(f);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};  // NaN
    bits += 0x7fffu + (bits >> 16 & 1);                       // round to nearest, ties to even
    return {static_cast<unsigned short>(bits >> 16)};
}

inline float2 __bfloat1622float2(__nv_bfloat162 h) { return {__bfloat162float(h.x), __bfloat162float(h.y)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16(x), __float2bfloat16(y)}; }
