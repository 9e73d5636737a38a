// Each CUDA thread is a fiber; blocks run one after another. A fiber runs until it has to meet other fibers: the whole
// block at a barrier, or the lanes of a mask in a warp operation. The launch chooses the order in which fibers run. A
// kernel whose result depends on the order has a race.
//   forward   the first warp runs alone until a barrier stops it, then the second, ...; within a warp, lane 0 is first
//   reverse   the opposite order: of two threads without a barrier between them, each is far ahead in one of these two
//   shuffled  lanes in random order, and sometimes one warp ahead, sometimes another
// Round robin would hide most races, because after each warp operation all fibers would have come equally far.
#pragma once

namespace emulator {

constexpr int MAX_THREADS = 1024, WARP = 32;
constexpr size_t STACK = 128 * 1024;

struct uint3 {
    unsigned x, y, z;
};

enum class State : unsigned char { ready, in_warp, in_warpgroup, in_block, done };
enum Order { forward, reverse, shuffled };

struct Copy {  // an asynchronous copy that has not landed yet: see memory.h
    void* to;
    const void* from;
    bool valid;
    int group;
};

struct Accumulators {  // registers to which wgmma products are still being added: see warpgroup.h
    float* registers;
    std::vector<float> sums;  // what they will hold
    int group;
};

struct Operands {  // what those products may still read
    const unsigned* a;
    unsigned a_before[4];     // the registers at a, if A comes from registers
    std::vector<int> pieces;  // of shared memory
    int group;
};

struct Fiber {
    Context context;
    uint3 thread;
    State state;
    // What it waits for:
    const char* operation;
    int line;
    unsigned mask;
    void* data;
    // Its cp.async copies:
    std::vector<Copy> copies;
    int groups;
    std::vector<int> landed;  // pieces of shared memory that it copied since its last fence.proxy.async
    // Its wgmma products:
    std::vector<Accumulators> accumulators;
    std::vector<Operands> operands;
    int product_groups;
    bool fenced;  // wgmma.fence since the last wait
};

struct Block {
    uint3 index, size, grid;
    int n_threads, n_done;
    int n_waiting, line;  // threads that wait at a barrier, and its line, as given by the first of them
    const char* operation;
    bool dependent;  // launched to overlap its predecessor, and not yet past griddepcontrol.wait
};

// A meeting of all 32 lanes of a warp. `n_here` lanes have come so far.
struct Meeting {
    const char* operation;
    int line, n_here;
    int n_elsewhere;  // lanes that wait at a barrier of the block, or have ended
};

static Block block;
static Meeting meetings[MAX_THREADS / WARP];
static Fiber fibers[MAX_THREADS];
static Fiber* current;  // null outside kernels
static Context outside;
static char* stacks;
static Order order;
static std::mt19937 dice;
static void (*thread_body)();
static const char* removed_file;  // a barrier of the kernel to leave out: see test_barriers.py
static int removed_line;
static char failure[1024];  // the first error of this launch; empty: none

// The fibers that can run, in the order in which they will. No fiber is in it twice.
static Fiber* queue[MAX_THREADS];
static int queue_head, queue_length;

inline int lane_of(const Fiber& fiber) { return int(&fiber - fibers) % WARP; }
inline Fiber* warp_of(const Fiber& fiber) { return fibers + (&fiber - fibers) / WARP * WARP; }

// Ends the launch with a message. The other fibers are abandoned.
[[noreturn]] inline void fail(const char* format, ...) {
    int n = snprintf(failure, sizeof failure, "block (%u, %u, %u), thread (%u, %u, %u): ", block.index.x, block.index.y,
                     block.index.z, current->thread.x, current->thread.y, current->thread.z);
    va_list values;
    va_start(values, format);
    vsnprintf(failure + n, sizeof failure - n, format, values);
    va_end(values);
    Fiber* last = current;
    current = nullptr;
    switch_context(last->context, outside);
    abort();
}

// Puts fibers into the queue in this launch's order, before or after those that are already in it.
inline void make_ready(Fiber** chosen, int n, bool before) {
    if (order == reverse) std::reverse(chosen, chosen + n);
    if (order == shuffled) std::shuffle(chosen, chosen + n, dice);
    if (before) queue_head = (queue_head + MAX_THREADS - n) % MAX_THREADS;
    int first = before ? queue_head : queue_head + queue_length;
    for (int i = 0; i < n; i++) {
        chosen[i]->state = State::ready;
        queue[(first + i) % MAX_THREADS] = chosen[i];
    }
    queue_length += n;
}

// No fiber can run: ends the launch with a message that says which threads wait where.
[[noreturn]] inline void deadlock() {
    char text[800];
    int n = 0, shown = 0;
    for (int i = 0; i < block.n_threads && shown < 4; i++) {
        const Fiber& fiber = fibers[i];
        bool same = i > 0 && fiber.state == fibers[i - 1].state && fiber.line == fibers[i - 1].line;
        if (same) continue;  // report neighbours in the same place once
        shown++;
        if (fiber.state == State::done)
            n += snprintf(text + n, sizeof text - n, "; thread %d has left the kernel", i);
        else
            n += snprintf(text + n, sizeof text - n, "; thread %d waits in %s at line %d", i, fiber.operation,
                          fiber.line);
    }
    fail("divergence: no thread can go on%s", text);
}

inline void switch_away() {
    Fiber* self = current;
    if (queue_length == 0) deadlock();
    current = queue[queue_head];
    queue_head = (queue_head + 1) % MAX_THREADS;
    queue_length--;
    if (current != self) switch_context(self->context, current->context);
}

// All threads of the block meet here; the last one to arrive runs `act`.
template <class Act>
void meet_in_block(const char* operation, int line, Act act) {
    Fiber& self = *current;
    self.state = State::in_block;
    meetings[(&self - fibers) / WARP].n_elsewhere++;
    self.operation = operation;
    self.line = line;
    if (block.n_done)
        fail("divergence: in %s at line %d, but %d threads have left the kernel", operation, line, block.n_done);
    if (block.n_waiting++ == 0) {
        block.operation = operation;
        block.line = line;
    }
    if (block.line != line || block.operation != operation)
        fail("divergence: in %s at line %d, while others are in %s at line %d", operation, line, block.operation,
             block.line);
    if (block.n_waiting == block.n_threads) {
        act();
        block.n_waiting = 0;
        Fiber* all[MAX_THREADS];
        for (int i = 0; i < block.n_threads; i++) all[i] = fibers + i;
        for (int i = 0; i < block.n_threads; i += WARP) meetings[i / WARP].n_elsewhere = 0;
        make_ready(all, block.n_threads, false);
    }
    switch_away();
}

// The lanes of `mask` meet here, each with its data. The last one to arrive runs `act` on the data of all 32 lanes,
// which is null for lanes outside the mask.
template <class Data, class Act>
void meet_in_warp(const char* operation, int line, unsigned mask, Data& mine, Act act) {
    Fiber &self = *current, *warp = warp_of(self);
    if (!(mask >> lane_of(self) & 1))
        fail("%s at line %d: lane %d is not in its mask %08x", operation, line, lane_of(self), mask);
    self.state = State::in_warp;
    self.operation = operation;
    self.line = line;
    self.mask = mask;
    self.data = &mine;

    // The usual case in few steps: a whole warp, in which nobody is anywhere else. The loop below is for the last lane to
    // arrive, and for all that is wrong or rare.
    Meeting& meeting = meetings[(&self - fibers) / WARP];
    bool whole = mask == ~0u && warp + WARP <= fibers + block.n_threads;
    if (whole && !meeting.n_elsewhere) {
        if (meeting.n_here == 0) {
            meeting.operation = operation;
            meeting.line = line;
        }
        if (meeting.operation == operation && meeting.line == line && ++meeting.n_here < WARP) {
            switch_away();
            return;
        }
    }

    Data* data[WARP] = {};
    Fiber* chosen[WARP];
    int n = 0, n_here = 0;
    for (int lane = 0; lane < WARP; lane++) {
        if (!(mask >> lane & 1)) continue;
        Fiber& other = warp[lane];
        if (&other >= fibers + block.n_threads)
            fail("%s at line %d: the mask %08x names lane %d, which this block does not have", operation, line, mask,
                 lane);
        if (other.state == State::done)
            fail("divergence: %s at line %d waits for lane %d, which has left the kernel", operation, line, lane);
        chosen[n++] = &other;
        if (other.state == State::ready) continue;
        if (other.state == State::in_block || other.operation != operation || other.line != line || other.mask != mask)
            fail("divergence: in %s at line %d with mask %08x, while lane %d is in %s at line %d with mask %08x",
                 operation, line, mask, lane, other.operation, other.line, other.mask);
        data[lane] = static_cast<Data*>(other.data);
        n_here++;
    }
    if (n_here == n) {
        act(data);
        if (whole) meeting.n_here = 0;  // else other lanes may have come to the next meeting already
        make_ready(chosen, n, order != shuffled || dice() % 2);
    }
    switch_away();
}

// Every fiber starts and ends in this function.
inline void fiber_main() {
    thread_body();
    Fiber& self = *current;
    if (!self.copies.empty())
        fail("the kernel ends with %d cp.async copies that no thread waited for", int(self.copies.size()));
    if (!self.accumulators.empty()) fail("the kernel ends with wgmma products that this thread did not wait for");
    self.state = State::done;
    self.line = 0;
    block.n_done++;
    meetings[(&self - fibers) / WARP].n_elsewhere++;
    if (block.n_done < block.n_threads) switch_away();
    current = nullptr;
    switch_context(self.context, outside);
    abort();
}

inline void run_block() {
    if (!stacks) {
        stacks = static_cast<char*>(mmap(nullptr, STACK * MAX_THREADS, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (stacks == MAP_FAILED) abort();
    }
    block.n_done = block.n_waiting = 0;
    queue_head = queue_length = 0;
    Fiber* all[MAX_THREADS];
    for (Meeting& meeting : meetings) meeting = {};
    for (int i = 0; i < block.n_threads; i++) {
        Fiber& fiber = fibers[i];
        prepare(fiber.context, stacks + STACK * i, STACK, fiber_main);
        fiber.thread = {i % block.size.x, i / block.size.x % block.size.y, i / (block.size.x * block.size.y)};
        fiber.line = fiber.groups = fiber.product_groups = 0;
        fiber.fenced = false;
        fiber.copies.clear();
        fiber.landed.clear();
        fiber.accumulators.clear();
        fiber.operands.clear();
        all[i] = &fiber;
    }
    make_ready(all, block.n_threads, false);
    current = queue[queue_head++];
    queue_length--;
    switch_context(outside, current->context);
}

}  // namespace emulator
