// wgmma: a warpgroup, four neighbouring warps, multiplies matrices in shared memory while its threads go on.
//   D (64, N) += A (64, 16) B (16, N)
// "Asynchronous warpgroup level matrix instructions" in the PTX ISA. The emulation computes a product as soon as all 128
// threads have asked for it, and lets nobody see it before the wait: until then the accumulators are poison. It fails
// when a product reads what a copy has not made visible, when something changes what a product may still read, and when
// accumulators are used without a fence.
#pragma once

namespace emulator {

constexpr int WARPGROUP = 128;

// All threads of a warpgroup meet here, each with its data; the last one to arrive runs `act` on the data of all.
template <class Data, class Act>
void meet_in_warpgroup(const char* operation, int line, Data& mine, Act act) {
    Fiber &self = *current, *group = fibers + (&self - fibers) / WARPGROUP * WARPGROUP;
    self.state = State::in_warpgroup;
    self.operation = operation;
    self.line = line;
    self.data = &mine;
    Data* data[WARPGROUP];
    Fiber* all[WARPGROUP];
    int n_here = 0;
    for (int i = 0; i < WARPGROUP; i++) {
        Fiber& other = group[i];
        all[i] = &other;
        if (other.state == State::done)
            fail("divergence: %s at line %d waits for thread %d, which has left the kernel", operation, line,
                 int(&other - fibers));
        if (other.state != State::in_warpgroup) continue;  // somewhere before this point
        if (other.operation != operation || other.line != line)
            fail("divergence: in %s at line %d, while thread %d is in %s at line %d", operation, line,
                 int(&other - fibers), other.operation, other.line);
        data[i] = static_cast<Data*>(other.data);
        n_here++;
    }
    if (n_here == WARPGROUP) {
        act(data);
        make_ready(all, WARPGROUP, order != shuffled || dice() % 2);
    }
    switch_away();
}

// A matrix in shared memory, as its descriptor says: rows of 128 bytes in groups of eight, whose 16-byte pieces are
// permuted (the 128-byte swizzle). "Leading" and "stride" are distances in bytes.
struct Matrix {
    unsigned start, leading, stride;
};

inline Matrix matrix_of(uint64_t descriptor, const char* operand) {
    Matrix m{unsigned(descriptor & 0x3fff) << 4, unsigned(descriptor >> 16 & 0x3fff) << 4,
             unsigned(descriptor >> 32 & 0x3fff) << 4};
    if (descriptor >> 62 != 1) fail("wgmma: %s: only the 128-byte swizzle is emulated", operand);
    if (descriptor & 0x3fffc000c000c000) fail("wgmma: %s: bits of the descriptor that must be 0 are not", operand);
    if (m.start & 0x380) fail("wgmma: %s: does not begin in the first of eight rows (a multiple of 1024)", operand);
    return m;
}

// Where element (row, k) lies: `row` is a row of A or a column of B, k runs along the sum. In a K-major matrix,
// neighbours in k lie side by side; else (transposed), neighbours in `row` do.
inline unsigned address_of(const Matrix& m, bool transposed, int row, int k) {
    unsigned address = m.start;
    if (transposed)
        address += row / 64 * m.leading + k / 8 * m.stride + k % 8 * 128 + row % 64 * 2;
    else
        address += row / 8 * m.stride + row % 8 * 128 + k * 2;
    return address ^ (address >> 3 & 0x70);
}

// Adds to `used` the pieces of shared memory that a matrix lies in. All of them must be visible to the tensor cores, and
// nobody may write into them until the product has ended.
inline void check_matrix(const Matrix& m, bool transposed, int rows, std::vector<int>& used, int line) {
    for (int row = 0; row < rows; row += transposed ? 8 : 1) {
        for (int k = 0; k < 16; k += transposed ? 1 : 8) {
            int piece = piece_of(from_shared_address(address_of(m, transposed, row, k)));
            if (piece < 0) fail("wgmma at line %d: reads outside this block's dynamic shared memory", line);
            if (pieces[piece].state == Piece::empty)
                fail("wgmma at line %d: reads shared memory that no copy has filled", line);
            if (pieces[piece].state == Piece::copying)
                fail("wgmma at line %d: reads shared memory into which cp.async still copies", line);
            if (pieces[piece].state == Piece::landed)
                fail("wgmma at line %d: reads what cp.async has copied, without fence.proxy.async", line);
            used.push_back(piece);
            pieces[piece].readers++;
        }
    }
}

// The matrix as floats, (16, rows)
inline void read_matrix(const Matrix& m, bool transposed, int rows, float* to) {
    for (int row = 0; row < rows; row++) {
        for (int k = 0; k < 16; k++) {
            unsigned short bits;
            memcpy(&bits, from_shared_address(address_of(m, transposed, row, k)), 2);
            to[k * rows + row] = half_of(bits, 0);
        }
    }
}

struct Product {
    float* d;
    const unsigned* a_registers;  // or null: A is in shared memory
    uint64_t a, b;
    std::vector<int> used;  // pieces of shared memory; only in a warp's first thread
};

inline Accumulators& accumulators_of(Fiber& fiber, float* d, int n) {
    for (Accumulators& found : fiber.accumulators)
        if (found.registers == d) return found;
    fiber.accumulators.push_back({d, std::vector<float>(d, d + n), 0});
    memset(d, POISON, n * sizeof(float));
    return fiber.accumulators.back();
}

// Lane 4 g + t of warp w holds of D row 16 w + g, columns 8 j + 2 t and 8 j + 2 t + 1, in d[4 j] and d[4 j + 1], and the
// same columns of row 8 further in d[4 j + 2] and d[4 j + 3]. A in registers: as for mma.sync, 16 rows a warp.
template <int N>
void multiply(Product** threads, Fiber* group, bool transposed, bool accumulate, int line) {
    static float a[16][64], b[16][N];
    if (threads[0]->a_registers) {
        for (int i = 0; i < WARPGROUP * 8; i++) {
            int thread = i / 8, row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
            a[thread % 4 * 2 + i % 2 + i / 4 % 2 * 8][row] = half_of(threads[thread]->a_registers[i / 2 % 4], i % 2);
        }
    } else {
        read_matrix(matrix_of(threads[0]->a, "A"), false, 64, a[0]);
    }
    read_matrix(matrix_of(threads[0]->b, "B"), transposed, N, b[0]);
    for (int thread = 0; thread < WARPGROUP; thread++) {
        if (threads[thread]->a != threads[0]->a || threads[thread]->b != threads[0]->b)
            fail("wgmma at line %d: the threads of the warpgroup give different descriptors", line);
        Fiber& fiber = group[thread];
        Operands operands{threads[thread]->a_registers, {}, threads[thread]->used, fiber.product_groups};
        if (operands.a) memcpy(operands.a_before, operands.a, sizeof operands.a_before);
        fiber.operands.push_back(operands);
        accumulators_of(fiber, threads[thread]->d, N / 2).group = fiber.product_groups;
    }
    for (int row = 0; row < 64; row++) {
        float sums[N] = {};
        for (int k = 0; k < 16; k++)
            for (int column = 0; column < N; column++) sums[column] += a[k][row] * b[k][column];
        for (int column = 0; column < N; column++) {
            int thread = row / 16 * 32 + row % 8 * 4 + column % 8 / 2;
            float& to = accumulators_of(group[thread], threads[thread]->d, N / 2)
                            .sums[column / 8 * 4 + row % 16 / 8 * 2 + column % 2];
            to = accumulate ? to + sums[column] : sums[column];
        }
    }
}

template <int N>
void wgmma(float* d, const unsigned* a_registers, uint64_t a, uint64_t b, bool transposed, bool accumulate, int line) {
    if (!current->fenced) fail("wgmma at line %d: no wgmma.fence since the registers could be used", line);
    Fiber* group = fibers + (current - fibers) / WARPGROUP * WARPGROUP;
    if (group + WARPGROUP > fibers + block.n_threads) fail("wgmma at line %d: no full warpgroup", line);
    Product mine{d, a_registers, a, b, {}};
    if (lane_of(*current) == 0) {  // a warp may start its share of the product before the other warps come
        if (!a_registers) check_matrix(matrix_of(a, "A"), false, 64, mine.used, line);
        check_matrix(matrix_of(b, "B"), transposed, N, mine.used, line);
    }
    meet_in_warpgroup("wgmma", line, mine, [=](Product** threads) {
        multiply<N>(threads, group, transposed, accumulate, line);
    });
}

inline void wgmma_fence() { current->fenced = true; }

inline void wgmma_commit() { current->product_groups++; }

// Ends all products except those of the latest groups, and checks that nobody has touched what they used.
inline void wgmma_wait(int groups_left) {
    Fiber& self = *current;
    self.fenced = false;
    int end = self.product_groups - groups_left;
    for (Operands& ended : self.operands) {
        if (ended.group >= end) continue;
        if (ended.a && memcmp(ended.a, ended.a_before, sizeof ended.a_before))
            fail("wgmma.wait_group: registers of operand A have changed before the wait");
        for (int piece : ended.pieces) pieces[piece].readers--;
    }
    for (Accumulators& ended : self.accumulators) {
        if (ended.group >= end) continue;
        const unsigned char* bytes = reinterpret_cast<unsigned char*>(ended.registers);
        for (size_t i = 0; i < ended.sums.size() * sizeof(float); i++)
            if (bytes[i] != POISON) fail("wgmma.wait_group: an accumulator was written before the wait");
        memcpy(ended.registers, ended.sums.data(), ended.sums.size() * sizeof(float));
    }
    auto over = [end](const auto& product) { return product.group < end; };
    self.operands.erase(std::remove_if(self.operands.begin(), self.operands.end(), over), self.operands.end());
    self.accumulators.erase(std::remove_if(self.accumulators.begin(), self.accumulators.end(), over),
                            self.accumulators.end());
}

inline void wgmma_check_complete(const float* d) {
    for (Accumulators& pending : current->accumulators)
        if (pending.registers == d) fail("wgmma.wait_group: leaves the products in these accumulators under way");
}

}  // namespace emulator
