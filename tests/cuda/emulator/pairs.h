// Arithmetic with numbers of 16 bits.
#pragma once

namespace emulator {

inline float half_as_float(unsigned bits) {
    int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    float size = exponent == 31 ? (mantissa ? NAN : INFINITY)
                                : ldexpf(exponent ? 1024 + mantissa : mantissa, (exponent ? exponent : 1) - 25);
    return bits >> 15 ? -size : size;
}

// a b + c for both bf16 of a register, rounded once: the product of two bf16 is exact as a float's 24 bits, and the sum
// as a double, unless the two are 2^29 apart.
inline unsigned fma_pairs(unsigned a, unsigned b, unsigned c) {
    unsigned out = 0;
    for (int shift = 0; shift < 32; shift += 16) {
        auto value = [shift](unsigned pair) { return double(__uint_as_float(pair >> shift << 16)); };
        out |= unsigned(__float2bfloat16(float(value(a) * value(b) + value(c))).bits) << shift;
    }
    return out;
}

}  // namespace emulator
