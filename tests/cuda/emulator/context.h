// The processor state of a fiber, and the switch to another fiber, which takes about ten nanoseconds on x86-64.
#pragma once

namespace emulator {

#if defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)

struct Context {
    void* stack_pointer;
};

// Pushes all registers that a called function must preserve onto the old stack, and pops those of the new stack.
extern "C" void emulator_switch(void** save, void* load);
__asm__(R"(
.text
.hidden emulator_switch
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch, .-emulator_switch
)");

inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + size);
    *--top = nullptr;  // as after a call, the stack pointer is 8 bytes off a multiple of 16
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    context.stack_pointer = top;
}

inline void switch_context(Context& from, Context& to) { emulator_switch(&from.stack_pointer, to.stack_pointer); }

#else  // other processors: the C library's switch, which makes two system calls each time

struct Context {
    ucontext_t state;
};

inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
    getcontext(&context.state);
    context.state.uc_stack.ss_sp = stack;
    context.state.uc_stack.ss_size = size;
    context.state.uc_link = nullptr;
    makecontext(&context.state, entry, 0);
}

inline void switch_context(Context& from, Context& to) { swapcontext(&from.state, &to.state); }

#endif

}  // namespace emulator
