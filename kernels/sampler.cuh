// What the sampler's kernels share: a row's parameters, results and cuts; the order of logits; sums over a block.
#pragma once
#include "common.cuh"

enum Param {  // 64 bits each; what is not a whole number is a double's bits
    TEMPERATURE, TOP_P, TOP_K, MIN_P, REPETITION, FREQUENCY, PRESENCE, SEED, INDEX, N_TOP, HAS_MASK, SLOT, PENALISES,
    N_PARAMS = 16
};  // MIN_P: temperature * log(min_p); off: top_p 1, top_k 0, MIN_P -infinity, N_TOP -1

enum Result { TOKEN, STATUS, LOGPROB, TOP_IDS, MAX_TOP = 32, TOP_LOGPROBS = TOP_IDS + MAX_TOP, N_RESULTS = 80 };
enum Status { DRAWN, BAD_LOGIT, NONE_LEFT, PADDING_ROW };  // BAD_LOGIT: TOKEN has the first NaN or +infinity

constexpr int THREADS = 256;
constexpr int TOKENS_PER_BLOCK = 4096;
constexpr int TOKENS_PER_THREAD = TOKENS_PER_BLOCK / THREADS;  // in sampler_draw

typedef long long Int;
typedef unsigned long long Count;

__device__ __forceinline__ double number(const Int* params, int which) { return __longlong_as_double(params[which]); }

// Unsigned integers in the order of the floats; +0 and -0 are equal.
__device__ __forceinline__ unsigned key_of(float x) {
    unsigned bits = __float_as_uint(x + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float value_of(unsigned key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

__device__ __forceinline__ double weight_of(float x, float highest, double temperature) {
    return exp(((double)x - (double)highest) / temperature);
}

// ---- what a block computes together, the same bits whatever the order of its threads ----

// `shared` is free again behind the next barrier.
template <class T>
__device__ __forceinline__ T block_max(T x, T* shared) {
    shared[threadIdx.x] = x;
    __syncthreads();
    for (int n = THREADS / 2; n; n /= 2) {
        if (threadIdx.x < n) shared[threadIdx.x] = max(shared[threadIdx.x], shared[threadIdx.x + n]);
        __syncthreads();
    }
    return shared[0];
}

// The sum of x over the threads before this one; `total` over all.
template <class T>
__device__ __forceinline__ T sum_before(T x, T* shared, T& total) {
    shared[threadIdx.x] = x;
    __syncthreads();
    for (int n = 1; n < THREADS; n *= 2) {
        T left = threadIdx.x >= n ? shared[threadIdx.x - n] : T(0);
        __syncthreads();
        shared[threadIdx.x] += left;
        __syncthreads();
    }
    T before = threadIdx.x ? shared[threadIdx.x - 1] : T(0);
    total = shared[THREADS - 1];
    __syncthreads();
    return before;
}

__device__ __forceinline__ float highest_of(const float* part_max, int n_parts) {
    float highest = part_max[0];
    for (int i = 1; i < n_parts; i++) highest = fmaxf(highest, part_max[i]);
    return highest;
}

// ---- what top_k, top_p and min_p leave ----

// What one of the three selections has found so far, and in the end.
struct Cut {
    unsigned prefix;  // the upper bits of the key; in the end all of them: of the lowest logit that is kept,
    unsigned ties;    // and how many of those that equal it are kept, by id
    Count above;      // how many, or what weight, has a key above all that begin with the prefix
    double target;    // how many, or what weight, is to be kept
};
enum Which { FOR_TOP_K, FOR_TOP_P, FOR_TOP_LOGPROBS };

__device__ __forceinline__ bool is_on(const Int* params, int which, int vocab_size) {
    if (which == FOR_TOP_LOGPROBS) return params[N_TOP] > 0 && params[N_TOP] < vocab_size;
    if (number(params, TEMPERATURE) == 0) return false;
    return which == FOR_TOP_K ? params[TOP_K] > 0 && params[TOP_K] < vocab_size : number(params, TOP_P) < 1;
}

__device__ __forceinline__ Cut read_cut(const Int* cuts, int row, int which) {
    const Int* c = cuts + ((size_t)row * 3 + which) * 4;
    return {(unsigned)c[0], (unsigned)c[1], (Count)c[2], __longlong_as_double(c[3])};
}

__device__ __forceinline__ void write_cut(Int* cuts, int row, int which, const Cut& cut) {
    Int* c = cuts + ((size_t)row * 3 + which) * 4;
    c[0] = cut.prefix;
    c[1] = cut.ties;
    c[2] = (Int)cut.above;
    c[3] = __double_as_longlong(cut.target);
}

// Which tokens of a row may be drawn: all above a key, some that equal it, none below a logit.
struct Survivors {
    unsigned lowest_key, ties;
    double lowest_logit;
};

__device__ __forceinline__ Survivors survivors_of(const Int* params, const Int* cuts, int row, float highest,
                                                  int vocab_size) {
    Survivors survivors = {0, 0, __dadd_rn(highest, number(params, MIN_P))};
    for (int which = FOR_TOP_K; which <= FOR_TOP_P; which++) {
        if (!is_on(params, which, vocab_size)) continue;
        Cut cut = read_cut(cuts, row, which);
        survivors.lowest_key = cut.prefix;
        survivors.ties = cut.ties;
    }
    return survivors;
}
