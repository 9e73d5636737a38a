// The interface to Python. KERNEL(name) makes a kernel callable with the addresses of its arguments, as the driver's
// cuLaunchKernel does, and reports the types of its parameters.
#pragma once

namespace emulator {

struct Range {
    char* begin;
    size_t size;
};

struct Launch {  // the same fields as `Launch` in build.py
    unsigned grid[3], block[3];
    size_t shared;
    int order;
    unsigned seed;
    int dependent;
    int n_hidden;
    const Range* hidden;  // pages that a dependent launch may not touch before its griddepcontrol.wait
    void** arguments;
    const char* removed_file;  // the barrier that stands there is not executed
    int removed_line;          // 0: none is left out
    char* message;  // (1024,), output: the error
    char* fault;    // output: the address of a forbidden access, or null
};

static const Launch* running;

inline void protect_hidden(int protection) {
    for (int i = 0; i < running->n_hidden; i++)
        if (mprotect(running->hidden[i].begin, running->hidden[i].size, protection)) abort();
}

inline void wait_for_predecessor(int line) {
    if (!block.dependent) return;
    meet_in_block("griddepcontrol.wait", line, [] {
        block.dependent = false;
        protect_hidden(PROT_READ | PROT_WRITE);
    });
}

// Signal handler: an access to memory that does not exist or may not be touched yet.
inline void on_fault(int number, siginfo_t* info, void*) {
    if (!current) {  // not in a kernel: the fault is not the emulator's
        signal(number, SIG_DFL);
        return;
    }
    const_cast<Launch*>(running)->fault = static_cast<char*>(info->si_addr);
    fail("touched %p%s", info->si_addr, block.dependent ? " before griddepcontrol.wait" : "");
}

inline void run_blocks() {
    const Launch& launch = *running;
    block.grid = {launch.grid[0], launch.grid[1], launch.grid[2]};
    block.size = {launch.block[0], launch.block[1], launch.block[2]};
    block.n_threads = int(block.size.x * block.size.y * block.size.z);
    std::vector<unsigned> blocks(size_t(block.grid.x) * block.grid.y * block.grid.z);
    for (size_t i = 0; i < blocks.size(); i++) blocks[i] = unsigned(i);
    if (order == reverse) std::reverse(blocks.begin(), blocks.end());
    if (order == shuffled) std::shuffle(blocks.begin(), blocks.end(), dice);
    bool waited = !launch.dependent;
    for (unsigned i : blocks) {
        block.index = {i % block.grid.x, i / block.grid.x % block.grid.y, i / block.grid.x / block.grid.y};
        block.dependent = launch.dependent;
        poison_shared();
        if (block.dependent) protect_hidden(PROT_NONE);
        run_block();
        if (block.dependent) protect_hidden(PROT_READ | PROT_WRITE);
        if (failure[0]) return;
        waited |= !block.dependent;
    }
    // A block may end without the wait: it has touched no memory that its predecessors use. But if all blocks do, the
    // kernel may end before its predecessor, and the kernel after it would start too early.
    if (!waited) snprintf(failure, sizeof failure, "overlaps its predecessor, and ends without griddepcontrol.wait");
}

inline int start(Launch* launch, void (*body)()) {
    running = launch;
    thread_body = body;
    order = static_cast<Order>(launch->order);
    dice.seed(launch->seed);
    dynamic_size = launch->shared;
    removed_file = launch->removed_file;
    removed_line = launch->removed_line;
    failure[0] = 0;

    static char signal_stack[64 * 1024];
    stack_t ours = {}, old_stack;
    ours.ss_sp = signal_stack;
    ours.ss_size = sizeof signal_stack;
    struct sigaction action = {}, old_segv, old_bus;
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigaltstack(&ours, &old_stack);
    sigaction(SIGSEGV, &action, &old_segv);
    sigaction(SIGBUS, &action, &old_bus);
    run_blocks();
    sigaction(SIGSEGV, &old_segv, nullptr);
    sigaction(SIGBUS, &old_bus, nullptr);
    sigaltstack(&old_stack, nullptr);

    memcpy(launch->message, failure, sizeof failure);
    return failure[0] != 0;
}

// ---- the type of a parameter as text for Python: "float32", "const bfloat16*" --------------------------------------
template <class T>
constexpr const char* scalar_name() {
    using Plain = std::remove_const_t<T>;
    if (std::is_same_v<Plain, __nv_bfloat16>) return "bfloat16";
    if (std::is_same_v<Plain, float>) return "float32";
    if (std::is_same_v<Plain, double>) return "float64";
    if (std::is_same_v<Plain, int>) return "int32";
    if (std::is_same_v<Plain, unsigned>) return "uint32";
    if (std::is_same_v<Plain, long long>) return "int64";
    if (std::is_same_v<Plain, unsigned long long>) return "uint64";
    if (std::is_same_v<Plain, unsigned char> || (std::is_class_v<Plain> && sizeof(Plain) == 1)) return "uint8";
    return "unknown";
}

template <class... Parameters>
void describe(void (*)(Parameters...), char* text, size_t size) {
    size_t n = 0;
    text[0] = 0;
    [[maybe_unused]] auto add = [&](const char* prefix, const char* name, const char* suffix) {
        n += snprintf(text + n, size - n, "%s%s%s%s", n ? "," : "", prefix, name, suffix);
    };
    (add(std::is_const_v<std::remove_pointer_t<Parameters>> ? "const " : "",
         scalar_name<std::remove_pointer_t<Parameters>>(), std::is_pointer_v<Parameters> ? "*" : ""),
     ...);
}

template <class... Parameters, size_t... I>
void call(void (*kernel)(Parameters...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<Parameters*>(arguments[I])...);
}
template <class... Parameters>
void call(void (*kernel)(Parameters...), void** arguments) {
    call(kernel, arguments, std::index_sequence_for<Parameters...>());
}

}  // namespace emulator

// build.py appends one of these for each kernel to the kernel file's text.
#define KERNEL(name, bounds)                                                                           \
    extern "C" int launch_##name(emulator::Launch* launch) {                                           \
        return emulator::start(launch, [] { emulator::call(name, emulator::running->arguments); });    \
    }                                                                                                  \
    extern "C" void describe_##name(char* text, size_t size) { emulator::describe(name, text, size); } \
    extern "C" size_t static_shared_##name() { return emulator::static_shared_size(); }                \
    extern "C" int max_threads_##name() { return bounds; }
