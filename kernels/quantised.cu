// Two steps around products with quantised matrices (weights.cuh).
//   dequantise    out = the rows of w as bf16, rounded: a scratch matrix for cuBLAS, which multiplies many rows
//   order_codes   once, after the upload: codes of 4 bits from the order of a file into the order of the products
//   w: n_rows rows of codes and scales; out (n_rows, width) bf16
// In a file, a word of 32 bits holds the codes of eight neighbouring columns, the first in its lowest bits, and four
// neighbouring words the columns of a lane. In the order of the products, four lanes together read 32 neighbouring
// columns, which lie together in x, too. And a mask cuts two neighbouring columns out of the two halves of a word:
//
//   columns of a group     0 .. 7        8 .. 15      16 .. 23     24 .. 31     32 .. 39     ...
//   word, in a file        0             1            2            3            4
//   word, here             0             4            8            12           1
//   bits of a word         0 .. 3   4 .. 7   8 .. 11   12 .. 15   16 .. 19   20 .. 23   24 .. 27   28 .. 31
//   column, in a file      0        1        2         3          4          5          6          7
//   column, here           0        2        4         6          1          3          5          7
//
// Launch: blocks of 256 threads; dequantise: a thread for each piece of 16 bytes; order_codes: for each word.
// Bytes:  dequantise writes 2 n_rows width, and reads a half or about a quarter of that.
#include "weights.cuh"

constexpr int THREADS = 256;

// The naive kernel: a thread for each entry.
extern "C" __global__ void dequantise_naive(const WEIGHT* w, bf16* out, int n_rows, int width) {
    size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    int row = at / width, column = at % width;
    if (row < n_rows) out[at] = __float2bfloat16(entry(row_of(w, row, width), column, width));
}

extern "C" __global__ void __launch_bounds__(THREADS)
    dequantise(const WEIGHT* w, bf16* out, int n_rows, int width) {
    wait_for_predecessor();
    let_successor_start();
    size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x;
    int n_pieces = width / PER_PIECE<WEIGHT>, row = at / n_pieces, i = at % n_pieces;
    if (row >= n_rows) return;
    const WEIGHT* codes = row_of(w, row, width);
    unsigned scale = reinterpret_cast<const unsigned*>(scales_of(codes, width))[GROUPED<WEIGHT> ? i / 4 : 0];
    uint4 piece = load_once(reinterpret_cast<const uint4*>(codes) + i);
    bf16* to = out + (size_t)row * width + i / 4 * CHUNK<WEIGHT> + i % 4 * LANE<WEIGHT>;
#pragma unroll
    for (int part = 0; part < EIGHTHS<WEIGHT>; part++) {
        Eight e = unpack(eighth(WEIGHT(), piece, part, zero_of<WEIGHT>(scale)));
#pragma unroll
        for (int j = 0; j < 8; j++) e.v[j] *= scale_of<WEIGHT>(scale);
        store_eight(to + part * NEXT<WEIGHT>, e);
    }
}

// codes (n_rows, width / 8) words, in the order of a file
extern "C" __global__ void __launch_bounds__(THREADS)
    order_codes(const unsigned* codes, Int4* w, int n_rows, int width) {
    wait_for_predecessor();
    let_successor_start();
    size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x;
    int row = at / (width / 8), word = at % (width / 8);
    if (row >= n_rows) return;
    unsigned from = codes[at], to = 0;
#pragma unroll
    for (int column = 0; column < 8; column++) {
        to |= (from >> 4 * column & 15) << 4 * (column / 2 + column % 2 * 4);
    }
    unsigned* out = reinterpret_cast<unsigned*>(const_cast<Int4*>(row_of<Int4>(w, row, width)));
    out[word / 16 * 16 + word % 4 * 4 + word % 16 / 4] = to;
}
