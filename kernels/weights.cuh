// How the matrices of weights are stored, and how their codes become numbers. A file that includes this one is compiled
// for one kind of matrix, WEIGHT: bf16 (16 bits), Int8 or Fp8 (8 bits), or Int4. An entry of the matrix is
//   bf16   the number itself
//   Int8   code * scale, a whole number from -128 to 127; a scale for each row
//   Fp8    code * scale, a number of 8 bits (e4m3: sign, 4 bits of exponent, 3 of mantissa); a scale for each row
//   Int4   (code - zero) * scale, a code from 0 to 15; zero and scale for each group of 128 columns of a row
//
// A row of codes is followed by its scales, and padded to a multiple of 64 bytes. So rows can be joined and cut as
// those of bf16 are.
//   Int8   width bytes; 64 times the scale, as float; 60 bytes of padding
//   Fp8    width bytes; the scale, as float; 60 bytes of padding
//   Int4   width / 2 bytes; for each group 64 times the scale, as float16, and -zero / 64, as bf16; padding
// A file has codes of 8 bits in this order already. The order of the codes of 4 bits is in quantised.cu.
//
// All codes are exact as bf16, so tensor cores can multiply them. It takes few instructions to make bf16 of them, which
// matters: an H200 reads 18.6 bytes a cycle for each SM, which issues four instructions in it, each for 32 lanes. For
// 16 bytes of codes a lane has 27 cycles, 110 instructions of its warp.
#pragma once
#include "common.cuh"

#ifndef WEIGHT
#define WEIGHT bf16
#endif

struct Int8 {
    unsigned char code;
};
struct Fp8 {
    unsigned char code;
};
struct Int4 {
    unsigned char two_codes;
};

constexpr int GROUP = 128;  // columns of an Int4 matrix that share a scale

template <class W>
constexpr int PER_PIECE = 16;  // entries in 16 bytes of codes
template <>
constexpr int PER_PIECE<bf16> = 8;
template <>
constexpr int PER_PIECE<Int4> = 32;

template <class W>
constexpr bool GROUPED = false;  // are there scales within a row?
template <>
constexpr bool GROUPED<Int4> = true;

// Four lanes that load four neighbouring pieces hold a chunk of columns: 32 of bf16, 64 of 8 bits, 128 of Int4. Lane t
// of them holds columns LANE t to LANE t + 7, then those that are NEXT columns further, and so on.
template <class W>
constexpr int CHUNK = 4 * PER_PIECE<W>;
template <class W>
constexpr int LANE = GROUPED<W> ? 8 : PER_PIECE<W>;
template <class W>
constexpr int NEXT = GROUPED<W> ? 32 : 8;
template <class W>
constexpr int EIGHTHS = PER_PIECE<W> / 8;  // eights of columns in a piece

// Bytes of the scales of a row, and of its padding
template <class W>
__device__ __forceinline__ int scale_bytes(int width) {
    return GROUPED<W> ? (width / GROUP * 4 + 63) / 64 * 64 : 64;
}

__device__ __forceinline__ const bf16* row_of(const bf16* w, int row, int width) { return w + (size_t)row * width; }

template <class W>
__device__ __forceinline__ const W* row_of(const W* w, int row, int width) {
    return w + (size_t)row * (width * 16 / PER_PIECE<W> + scale_bytes<W>(width));
}

// The scales of a row, behind its codes
template <class W>
__device__ __forceinline__ const W* scales_of(const W* row, int width) {
    return row + width * 16 / PER_PIECE<W>;
}

// ---- eight neighbouring entries, not yet multiplied by their scale, as four pairs of bf16 ---------------------------

// The i-th eight of a piece; the first argument only says of which kind. `zero` holds -zero / 64 twice, for Int4.
__device__ __forceinline__ uint4 eighth(bf16, uint4 piece, int, unsigned) { return piece; }

// A whole number n from 0 to 255 in the lower half of the bits of a bf16 stands for n 2^-133, because the exponent's
// two smallest values mean the same. One multiply-add makes (n - zero) / 64 of it, which is exact.
constexpr unsigned TIMES_2_127 = 0x7f007f00, TIMES_2_123 = 0x7d007d00;

// Two codes, as bytes from 0 to 255 instead of -128 to 127
__device__ __forceinline__ unsigned two_int8(unsigned codes, unsigned which) {
    return fma_pairs(__byte_perm(codes, 0, which), TIMES_2_127, 0xc000c000);  // 0xc000: -2, which is -128 / 64
}

__device__ __forceinline__ uint4 eighth(Int8, uint4 piece, int i, unsigned) {
    unsigned low = (i ? piece.z : piece.x) ^ 0x80808080, high = (i ? piece.w : piece.y) ^ 0x80808080;
    return make_uint4(two_int8(low, 0x4140), two_int8(low, 0x4342), two_int8(high, 0x4140), two_int8(high, 0x4342));
}

// e4m3 has 7 as the exponent's bias, bf16 127. So the bits, moved to their places, are the number times 2^-120. This
// also holds for the smallest numbers, which have no leading one in either format. NaN (0x7f) becomes 480.
__device__ __forceinline__ unsigned two_fp8(unsigned codes, unsigned which) {
    unsigned pair = __byte_perm(codes, 0, which);
    return fma_pairs((pair & 0x80008000) | (pair >> 4 & 0x07f007f0), 0x7b807b80, 0x80008000);  // 0x7b80: 2^120
}

__device__ __forceinline__ uint4 eighth(Fp8, uint4 piece, int i, unsigned) {
    unsigned low = i ? piece.z : piece.x, high = i ? piece.w : piece.y;
    return make_uint4(two_fp8(low, 0x1404), two_fp8(low, 0x3424), two_fp8(high, 0x1404), two_fp8(high, 0x3424));
}

// Of each half of `codes`, the lowest four bits, and the next four, which stand for a number 16 times as large
__device__ __forceinline__ uint4 eighth(Int4, uint4 piece, int i, unsigned zero) {
    unsigned codes = i == 0 ? piece.x : i == 1 ? piece.y : i == 2 ? piece.z : piece.w;
    return make_uint4(fma_pairs(codes & 0x000f000f, TIMES_2_127, zero),
                      fma_pairs(codes & 0x00f000f0, TIMES_2_123, zero),
                      fma_pairs(codes >> 8 & 0x000f000f, TIMES_2_127, zero),
                      fma_pairs(codes >> 8 & 0x00f000f0, TIMES_2_123, zero));
}

// What a word of scales says: 32 bits for a group of Int4, or for a row
template <class W>
__device__ __forceinline__ float scale_of(unsigned word) {
    return GROUPED<W> ? half_as_float(word & 0xffff) : __uint_as_float(word);
}
template <class W>
__device__ __forceinline__ unsigned zero_of(unsigned word) {
    return GROUPED<W> ? __byte_perm(word, 0, 0x3232) : 0;
}

// ---- one entry with its scale, for the naive kernels ----------------------------------------------------------------

__device__ __forceinline__ float entry(const bf16* row, int column, int) { return __bfloat162float(row[column]); }

template <class W>
__device__ __forceinline__ float entry(const W* row, int column, int width) {
    unsigned code = row[column].code;
    uint4 numbers = eighth(W(), make_uint4(code, 0, 0, 0), 0, 0);
    return unpack(numbers).v[0] * scale_of<W>(*reinterpret_cast<const unsigned*>(scales_of(row, width)));
}

// Column 128 k + 32 i + 8 t + c is in word i of piece 4 k + t. From its lowest bits up, a word has columns c = 0, 2, 4,
// 6, 1, 3, 5, 7 (quantised.cu).
__device__ __forceinline__ float entry(const Int4* row, int column, int width) {
    int i = column % GROUP / 32, t = column % 32 / 8, c = column % 8;
    unsigned word = reinterpret_cast<const unsigned*>(row)[column / GROUP * 16 + t * 4 + i];
    unsigned group = reinterpret_cast<const unsigned*>(scales_of(row, width))[column / GROUP];
    unsigned code = word >> 4 * (c / 2 + c % 2 * 4) & 15;
    return unpack(eighth(Int4(), make_uint4(code, 0, 0, 0), 0, zero_of<Int4>(group))).v[0] * scale_of<Int4>(group);
}
