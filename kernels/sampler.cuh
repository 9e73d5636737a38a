// Shared by the sampler's kernels: a row's parameters, results and cuts; keys that order logits; sums over a block.
#pragma once
#include "common.cuh"

enum Param {  // 64 bits each: an integer, or the bits of a double
    TEMPERATURE, TOP_P, TOP_K, MIN_P, REPETITION, FREQUENCY, PRESENCE, SEED, INDEX, N_TOP, HAS_MASK, SLOT, PENALISES,
    N_PARAMS = 16
};  // MIN_P holds temperature * log(min_p). If it is not set: TOP_P is 1, TOP_K 0, MIN_P -infinity, N_TOP -1.

// TOP_LOGPROBS holds the logarithm of the sum of exp(raw logit). The log-probabilities of TOP_IDS begin one field after
// it.
enum Result { TOKEN, STATUS, LOGPROB, TOP_IDS, MAX_TOP = 32, TOP_LOGPROBS = TOP_IDS + MAX_TOP, N_RESULTS = 80 };
// BAD_LOGIT: TOKEN is the first token whose logit is NaN or +infinity, LOGPROB that logit. NONE_LEFT: no token has a finite logit.
enum Status { DRAWN, BAD_LOGIT, NONE_LEFT, PADDING_ROW };

constexpr int THREADS = 256;
constexpr int TOKENS_PER_BLOCK = 4096;
constexpr int TOKENS_PER_THREAD = TOKENS_PER_BLOCK / THREADS;  // in sampler_draw

typedef long long Int;
typedef unsigned long long Count;

__device__ __forceinline__ double number(const Int* params, int which) { return __longlong_as_double(params[which]); }

// An unsigned integer for each float, in the same order; +0 and -0 get the same integer.
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

// ---- maximum and sums over a block; the bits do not depend on the order of its threads ----

// The maximum over the block. `shared` can be reused after the next barrier.
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

// The sum of x over all threads before this one. `total` becomes the sum over all threads.
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

// ---- which tokens top_k, top_p and min_p keep ----

// What one of the three selections has found so far. It searches for the lowest logit that is kept.
struct Cut {
    unsigned prefix;  // the upper bits of its key; at the end, all bits
    unsigned ties;    // how many tokens with exactly this logit are kept, the lowest ids first
    Count above;      // the number, or the weight, of all tokens whose key is above those that begin with the prefix
    double target;    // the number, or the weight, of tokens to keep
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

// The tokens of a row that may be drawn: all with a key above lowest_key and `ties` tokens that have it, but none with
// a logit below lowest_logit.
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
