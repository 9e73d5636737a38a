// Warp operations. The last lane to arrive does the work for all, because then the data of every lane is there.
#pragma once

namespace emulator {

template <class T>
struct Exchange {
    T value, result;
    int source;
};

template <class T>
T shuffle(const char* operation, int line, unsigned mask, T value, int source) {
    Exchange<T> mine{value, value, source};
    meet_in_warp(operation, line, mask, mine, [&](Exchange<T>** lanes) {
        for (int lane = 0; lane < WARP; lane++) {
            if (!lanes[lane]) continue;
            int from = lanes[lane]->source;
            if (!lanes[from])
                fail("%s at line %d: lane %d reads lane %d, which is not in the mask %08x", operation, line, lane, from,
                     mask);
            lanes[lane]->result = lanes[from]->value;
        }
    });
    return mine.result;
}

// The mask of the lanes for which `predicate` holds.
inline unsigned vote(const char* operation, int line, unsigned mask, bool predicate) {
    Exchange<unsigned> mine{predicate, 0, 0};
    meet_in_warp(operation, line, mask, mine, [](Exchange<unsigned>** lanes) {
        unsigned ballot = 0;
        for (int lane = 0; lane < WARP; lane++) ballot |= unsigned(lanes[lane] && lanes[lane]->value) << lane;
        for (int lane = 0; lane < WARP; lane++)
            if (lanes[lane]) lanes[lane]->result = ballot;
    });
    return mine.result;
}

// ---- mma.sync m16n8k16: D (16, 8) += A (16, 16) B (16, 8) -----------------------------------------------------------
// "Matrix fragments for mma.m16n8k16 with floating point type" in the PTX ISA: lane = 4 g + t holds
//   A: register 0 row g, 1 row g + 8, both columns 2 t and 2 t + 1; 2 and 3 the same rows, columns 8 further
//   B: register 0 rows 2 t and 2 t + 1, 1 rows 8 further; both column g
//   D: 0 and 1 row g, columns 2 t and 2 t + 1; 2 and 3 the same columns of row g + 8
struct Fragments {
    float* d;
    const unsigned *a, *b;
};

inline float half_of(unsigned pair, int high) {
    unsigned bits = high ? pair & 0xffff0000u : pair << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline void multiply(Fragments** lanes) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < WARP; lane++) {
        int g = lane / 4, t = lane % 4;
        const Fragments& from = *lanes[lane];
        for (int i = 0; i < 8; i++) a[g + i / 2 % 2 * 8][2 * t + i % 2 + i / 4 * 8] = half_of(from.a[i / 2], i % 2);
        for (int i = 0; i < 4; i++) b[2 * t + i % 2 + i / 2 * 8][g] = half_of(from.b[i / 2], i % 2);
    }
    for (int row = 0; row < 16; row++) {
        float sums[8] = {};
        for (int k = 0; k < 16; k++)
            for (int column = 0; column < 8; column++) sums[column] += a[row][k] * b[k][column];
        for (int column = 0; column < 8; column++) {
            lanes[row % 8 * 4 + column / 2]->d[row / 8 * 2 + column % 2] += sums[column];
        }
    }
}

inline void mma(float* d, const unsigned* a, const unsigned* b, int line) {
    Fragments mine{d, a, b};
    meet_in_warp("mma.sync", line, ~0u, mine, multiply);
}

// ---- ldmatrix: N matrices of 8 x 8 halves; lane 8 m + r gives the address of row r of matrix m ----------------------
// Lane 4 g + t receives columns 2 t and 2 t + 1 of row g, or, transposed, column g of rows 2 t and 2 t + 1.
struct Rows {
    const char* row;
    unsigned* result;
};

template <int N>
void load_matrices(unsigned* result, const void* row, bool transposed, int line) {
    Rows mine{static_cast<const char*>(row), result};
    if (lane_of(*current) < 8 * N) check_shared("ldmatrix", row, 16);  // the other lanes' addresses are not read
    meet_in_warp("ldmatrix", line, ~0u, mine, [transposed](Rows** lanes) {
        for (int lane = 0; lane < WARP; lane++)
            for (int i = 0; i < 2 * N; i++) {
                int g = lane / 4, t = 2 * (lane % 4) + i % 2;
                const char* from = lanes[i / 2 * 8 + (transposed ? t : g)]->row + 2 * (transposed ? g : t);
                memcpy(reinterpret_cast<char*>(&lanes[lane]->result[i / 2]) + 2 * (i % 2), from, 2);
            }
    });
}

}  // namespace emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int line = __builtin_LINE()) {
    return emulator::shuffle("__shfl_sync", line, mask, value, lane & 31);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int line = __builtin_LINE()) {
    return emulator::shuffle("__shfl_xor_sync", line, mask, value, (emulator::lane_of(*emulator::current) ^ bits) & 31);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int delta, int line = __builtin_LINE()) {
    int lane = emulator::lane_of(*emulator::current);
    return emulator::shuffle("__shfl_up_sync", line, mask, value, lane - delta < 0 ? lane : lane - delta);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int delta, int line = __builtin_LINE()) {
    int lane = emulator::lane_of(*emulator::current);
    return emulator::shuffle("__shfl_down_sync", line, mask, value, lane + delta > 31 ? lane : lane + delta);
}
inline unsigned __ballot_sync(unsigned mask, bool predicate, int line = __builtin_LINE()) {
    return emulator::vote("__ballot_sync", line, mask, predicate);
}
inline bool __any_sync(unsigned mask, bool predicate, int line = __builtin_LINE()) {
    return emulator::vote("__any_sync", line, mask, predicate) != 0;
}
inline bool __all_sync(unsigned mask, bool predicate, int line = __builtin_LINE()) {
    return emulator::vote("__all_sync", line, mask, predicate) == mask;
}
inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) {
    emulator::vote("__syncwarp", line, mask, false);
}
inline void __syncthreads(int line = __builtin_LINE(), const char* file = __builtin_FILE()) {
    if (line == emulator::removed_line && strcmp(file, emulator::removed_file) == 0) return;
    emulator::meet_in_block("__syncthreads", line, [] {});
}
