// Shared memory, asynchronous copies, atomics, and the handlers of g++'s sanitizers.
#pragma once

namespace emulator {

constexpr size_t SHARED_LIMIT = 227 * 1024;  // the most that a block can have on any supported GPU
constexpr unsigned char POISON = 0xFF;       // NaN as bf16 and as float; out of range as an index

// ---- shared memory: poisoned before every block --------------------------------------------------------------------
// All static arrays are in one section; the linker defines symbols for its two ends.
extern "C" __attribute__((weak)) char __start_shared_arrays[];
extern "C" __attribute__((weak)) char __stop_shared_arrays[];

static char* dynamic_end;  // the dynamic part ends here; unreadable pages follow
constexpr size_t GUARD = 1 << 20;
static size_t dynamic_size;

// Aligned as the kernels declare it. So up to 127 bytes may lie between its end and the unreadable page.
inline char* dynamic_shared() {
    return reinterpret_cast<char*>(uintptr_t(dynamic_end - dynamic_size) & ~uintptr_t(127));
}

// Dynamic shared memory in pieces of 16 bytes, for wgmma. It reads on another path than ordinary instructions (the
// "async proxy"). What cp.async has written can be read there after its thread has waited for the copy and then executed
// fence.proxy.async. Ordinary stores are not followed, because the kernels fill what wgmma reads by cp.async only.
struct Piece {
    enum : unsigned char { empty, copying, landed, visible } state;
    unsigned char readers;  // warps that have products under way which may still read it
};
static Piece pieces[SHARED_LIMIT / 16 + 8];

// The index of the piece that holds p, or -1 if p is not in dynamic shared memory.
inline int piece_of(const void* p) {
    const char *c = static_cast<const char*>(p), *begin = dynamic_shared();
    return c >= begin && c < begin + dynamic_size ? int(c - begin) / 16 : -1;
}

// As an instruction sees it: 32 bits, from the beginning of the block's shared memory.
inline unsigned shared_address(const void* p) {
    return unsigned(static_cast<const char*>(p) - dynamic_end + SHARED_LIMIT);
}
inline char* from_shared_address(unsigned address) { return dynamic_end - SHARED_LIMIT + address; }

inline size_t static_shared_size() { return __stop_shared_arrays - __start_shared_arrays; }

inline void poison_shared() {
    if (!dynamic_end) {
        size_t size = (SHARED_LIMIT + 4095) / 4096 * 4096;
        void* area = mmap(nullptr, size + GUARD, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (area == MAP_FAILED) abort();
        dynamic_end = static_cast<char*>(area) + size;
        if (mprotect(dynamic_end, GUARD, PROT_NONE)) abort();
    }
    for (Piece& piece : pieces) piece = {};
    memset(__start_shared_arrays, POISON, static_shared_size());
    memset(dynamic_shared(), POISON, dynamic_end - dynamic_shared());
}

inline bool in_shared(const void* p, size_t size) {
    const char* c = static_cast<const char*>(p);
    return (c >= dynamic_shared() && c + size <= dynamic_shared() + dynamic_size) ||
           (c >= __start_shared_arrays && c + size <= __stop_shared_arrays);
}

inline void check_shared(const char* what, const void* p, size_t size) {
    if (!in_shared(p, size)) fail("%s: the address is not in this block's shared memory", what);
    if (uintptr_t(p) % 16) fail("%s: misaligned: %d bytes past a multiple of 16", what, int(uintptr_t(p) % 16));
}

// ---- cp.async: the destination is poison from the copy to its wait --------------------------------------------------
inline void copy_async(void* to, const void* from, bool valid) {
    check_shared("cp.async", to, 16);
    int past = uintptr_t(from) % 16;
    if (past) fail("cp.async: misaligned source: %d bytes past a multiple of 16", past);
    if (int piece = piece_of(to); piece >= 0) {
        if (pieces[piece].readers) fail("cp.async: overwrites shared memory that a wgmma product may still read");
        pieces[piece].state = Piece::copying;
    }
    memset(to, POISON, 16);
    current->copies.push_back({to, from, valid, current->groups});
}

inline void commit_copies() { current->groups++; }

inline void wait_copies(int groups_left) {
    std::vector<Copy>& copies = current->copies;
    size_t n = 0;
    for (; n < copies.size() && copies[n].group < current->groups - groups_left; n++) {
        if (copies[n].valid)
            memcpy(copies[n].to, copies[n].from, 16);
        else
            memset(copies[n].to, 0, 16);
        if (int piece = piece_of(copies[n].to); piece >= 0) {
            pieces[piece].state = Piece::landed;
            current->landed.push_back(piece);
        }
    }
    copies.erase(copies.begin(), copies.begin() + n);
}

inline void fence_async_proxy() {
    for (int piece : current->landed)
        if (pieces[piece].state == Piece::landed) pieces[piece].state = Piece::visible;
    current->landed.clear();
}

// ---- handlers of g++ -fsanitize=alignment,bounds --------------------------------------------------------------------
struct Source {
    const char* file;
    unsigned line, column;
};
struct Type {
    unsigned short kind, info;
    char name[1];
};
struct Misaligned {
    Source source;
    const Type* type;
    unsigned char log_alignment, access;
};
struct OutOfBounds {
    Source source;
    const Type *array, *index;
};

}  // namespace emulator

#define UBSAN_REPORT extern "C" inline __attribute__((used)) void

UBSAN_REPORT __ubsan_handle_type_mismatch_v1(emulator::Misaligned* found, uintptr_t address) {
    unsigned alignment = 1u << found->log_alignment;
    emulator::fail("misaligned access to %s at line %u: %u bytes past a multiple of %u", found->type->name,
                   found->source.line, unsigned(address % alignment), alignment);
}

UBSAN_REPORT __ubsan_handle_out_of_bounds(emulator::OutOfBounds* found, uintptr_t index) {
    emulator::fail("index %ld is outside the array %s at line %u", long(index), found->array->name,
                   found->source.line);
}

// ---- atomics: only one fiber runs at a time, so plain code is atomic ------------------------------------------------
template <class T>
T atomicAdd(T* p, T value) {
    T old = *p;
    *p += value;
    return old;
}
template <class T>
T atomicXor(T* p, T value) {
    T old = *p;
    *p ^= value;
    return old;
}
template <class T>
T atomicMax(T* p, T value) {
    T old = *p;
    *p = std::max(old, value);
    return old;
}
template <class T>
T atomicMin(T* p, T value) {
    T old = *p;
    *p = std::min(old, value);
    return old;
}
template <class T>
T atomicExch(T* p, T value) {
    T old = *p;
    *p = value;
    return old;
}
template <class T>
T atomicCAS(T* p, T expected, T value) {
    T old = *p;
    if (old == expected) *p = value;
    return old;
}
inline unsigned atomicInc(unsigned* p, unsigned last) {
    unsigned old = *p;
    *p = old >= last ? 0 : old + 1;
    return old;
}
inline void __threadfence() {}
