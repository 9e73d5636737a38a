// Finds the lowest logit that a row keeps: the top_k-th, the one that crosses top_p, or the last of the most likely
// tokens. It does not sort: a histogram over the upper 11 bits of the keys finds the bin that holds this logit. A
// second one over the next 11 bits of the keys in that bin narrows it down, and a third over the last 10 bits finds the
// key itself. top_k counts tokens, top_p adds up weights. Weights are integer multiples of 2^-46, so the order of
// additions does not matter.
//
// Launch: as in sampler.cu, three times for each of the three logits. The blocks of a row that does not need it return
//         at once.
#include "sampler.cuh"

constexpr int MAX_BINS = 2048, BINS_PER_THREAD = MAX_BINS / THREADS;
constexpr double UNIT = 0x1p46;  // a weight of 1 as an integer in a histogram; 2^17 such weights fit in 64 bits

__device__ __forceinline__ Count in_units(double weight) { return (Count)llrint(weight * UNIT); }

// What one launch of a selection counts: bits `shift` to `shift + bits - 1` of the keys whose higher bits are `prefix`.
struct Level {
    int shift, bits, n_bins;
    bool is_first;  // no prefix yet: every key is counted
    unsigned prefix;
    bool by_weight;    // top_p: add up weights; otherwise: count tokens
    bool after_top_k;  // top_p with top_k: only tokens that top_k keeps are counted: all tokens with a key
    unsigned top_k_key, top_k_ties;  // above top_k_key, and top_k_ties tokens with exactly this key
    float highest;
    double temperature;
};

// Makes a histogram of this block's tokens in shared memory, and adds it to the row's in device memory.
__device__ __forceinline__ void count_tokens(const Level& l, const float* x, unsigned (&count)[MAX_BINS],
                                             Count (&weight)[MAX_BINS], unsigned* counts, Count* weights,
                                             int vocab_size) {
    int first = blockIdx.x * TOKENS_PER_BLOCK;
    for (int i = threadIdx.x; i < l.n_bins; i += THREADS) count[i] = 0, weight[i] = 0;
    __syncthreads();
    for (int i = first + threadIdx.x; i < min(first + TOKENS_PER_BLOCK, vocab_size); i += THREADS) {
        unsigned key = key_of(x[i]), bin = key >> l.shift & (l.n_bins - 1);
        if (!l.is_first && key >> (l.shift + l.bits) != l.prefix) continue;
        if (l.after_top_k && key <= l.top_k_key) continue;  // take_bins adds the tokens with top_k_key
        atomicAdd(&count[bin], 1u);
        if (l.by_weight) atomicAdd(&weight[bin], in_units(weight_of(x[i], l.highest, l.temperature)));
    }
    __syncthreads();
    for (int i = threadIdx.x; i < l.n_bins; i += THREADS) {
        if (count[i]) atomicAdd(&counts[i], count[i]);
        if (weight[i]) atomicAdd(&weights[i], weight[i]);
    }
}

// The j-th bin of this thread, highest first; thread 0 has the highest bins. A negative result means no such bin.
__device__ __forceinline__ int bin_of(const Level& l, int j) {
    return l.n_bins - 1 - (threadIdx.x * BINS_PER_THREAD + j);
}

// Moves the row's histogram from device memory to shared memory, and leaves zeros in device memory. Returns the sum of
// this thread's bins.
__device__ __forceinline__ Count take_bins(const Level& l, unsigned (&count)[MAX_BINS], Count (&weight)[MAX_BINS],
                                           unsigned* counts, Count* weights) {
    Count here = 0;
    for (int j = 0; j < BINS_PER_THREAD; j++) {
        int bin = bin_of(l, j);
        if (bin < 0) break;
        count[bin] = atomicExch(&counts[bin], 0u);
        weight[bin] = atomicExch(&weights[bin], 0ull);
        bool begins = l.is_first || l.top_k_key >> (l.shift + l.bits) == l.prefix;
        if (l.after_top_k && begins && (l.top_k_key >> l.shift & (l.n_bins - 1)) == bin) {
            count[bin] += l.top_k_ties;
            weight[bin] += l.top_k_ties * in_units(weight_of(value_of(l.top_k_key), l.highest, l.temperature));
        }
        here += l.by_weight ? weight[bin] : count[bin];
    }
    return here;
}

// Level 0, 1 or 2 of a selection: the histogram of the next bits of the keys that begin with the prefix. The last block
// of a row finds the bin in which the target is reached.
// counts, weights (T, MAX_BINS), arrivals (T): zero before and after the launch; cuts (T, 3, 4)
extern "C" __global__ void __launch_bounds__(THREADS)
    sampler_select(const float* values, const Int* params, const int* positions, const float* part_max, Int* cuts,
                   unsigned* counts, Count* weights, unsigned* arrivals, int vocab_size, int which, int level) {
    __shared__ unsigned count[MAX_BINS];
    __shared__ Count weight[MAX_BINS];
    __shared__ Count scan[THREADS];
    wait_for_predecessor();
    let_successor_start();
    int row = blockIdx.y;
    const Int* p = params + (size_t)row * N_PARAMS;
    if (positions[row] < 0 || !is_on(p, which, vocab_size)) return;
    Cut cut = read_cut(cuts, row, which), top_k = read_cut(cuts, row, FOR_TOP_K);
    Level l;
    l.shift = level == 0 ? 21 : level == 1 ? 10 : 0, l.bits = level == 2 ? 10 : 11, l.n_bins = 1 << l.bits;
    l.is_first = level == 0, l.prefix = l.is_first ? 0 : cut.prefix;
    l.by_weight = which == FOR_TOP_P, l.after_top_k = l.by_weight && is_on(p, FOR_TOP_K, vocab_size);
    l.top_k_key = l.after_top_k ? top_k.prefix : 0, l.top_k_ties = top_k.ties;
    l.highest = l.by_weight ? highest_of(part_max + (size_t)row * gridDim.x, gridDim.x) : 0;
    l.temperature = number(p, TEMPERATURE);

    counts += (size_t)row * MAX_BINS, weights += (size_t)row * MAX_BINS;
    count_tokens(l, values + (size_t)row * vocab_size, count, weight, counts, weights, vocab_size);
    if (!is_last_block(&arrivals[row], gridDim.x)) return;

    Count total, here = take_bins(l, count, weight, counts, weights), before = sum_before(here, scan, total);
    if (level == 0) {
        cut.above = 0;
        cut.target = which == FOR_TOP_K ? (double)p[TOP_K] : which == FOR_TOP_LOGPROBS ? (double)p[N_TOP]
                     : fmax(number(p, TOP_P) * (double)total, 1.0);  // the token that crosses top_p is kept
    }
    Count sum = cut.above + before;
    if ((double)sum >= cut.target || (double)(sum + here) < cut.target) return;
    for (int j = 0; j < BINS_PER_THREAD; j++) {  // only the thread whose bins reach the target gets here
        int bin = bin_of(l, j);
        Count size = l.by_weight ? weight[bin] : count[bin];
        if ((double)(sum + size) < cut.target) {
            sum += size;
            continue;
        }
        double each = (double)size / count[bin];
        cut.prefix = l.prefix << l.bits | bin;
        cut.ties = (unsigned)fmin(fmax(ceil((cut.target - (double)sum) / each), 1.0), (double)count[bin]);
        cut.above = sum;
        write_cut(cuts, row, which, cut);
        return;
    }
}
