// The logit at which a row's head ends: the top_k-th, the one that crosses top_p, or the last of the most likely ones.
// Without sorting: a histogram over the upper 11 bits of the keys tells in which bin it is, one over the next 11 bits of
// the keys in that bin where there, and one over the last 10 which it is: of counts for top_k, of weights for top_p.
// Weights are added up as whole multiples of 2^-46, so that the order of the additions does not matter.
//
// Launch: as in sampler.cu, three times for each of the three; a row that does not ask for it returns at once.
#include "sampler.cuh"

constexpr int MAX_BINS = 2048, BINS_EACH = MAX_BINS / THREADS;
constexpr double UNIT = 0x1p46;  // a weight of 1 in a histogram: 2^17 of them fit in 64 bits

__device__ __forceinline__ Count in_units(double weight) { return (Count)llrint(weight * UNIT); }

// Level 0, 1, 2 of a selection: the histogram of the next bits of the keys that begin with the prefix. The block that is
// the last of its row to have added its part looks where the target is reached.
// counts, weights (T, MAX_BINS), tickets (T): zero before, and zero again afterwards; cuts (T, 3, 4).
extern "C" __global__ void __launch_bounds__(THREADS)
    sampler_select(const float* values, const Int* params, const int* positions, const float* part_max, Int* cuts,
                   unsigned* counts, Count* weights, unsigned* tickets, int vocab_size, int which, int level) {
    __shared__ unsigned count[MAX_BINS];
    __shared__ Count weight[MAX_BINS];
    __shared__ Count scan[THREADS];
    wait_for_predecessor();
    let_successor_start();
    int row = blockIdx.y, first = blockIdx.x * PART;
    const Int* p = params + (size_t)row * N_PARAMS;
    if (positions[row] < 0 || !is_on(p, which, vocab_size)) return;
    int shift = level == 0 ? 21 : level == 1 ? 10 : 0, bits = level == 2 ? 10 : 11, n_bins = 1 << bits;
    bool by_weight = which == FOR_TOP_P, after_top_k = by_weight && is_on(p, FOR_TOP_K, vocab_size);
    Cut cut = read_cut(cuts, row, which), top_k = read_cut(cuts, row, FOR_TOP_K);
    unsigned prefix = level ? cut.prefix : 0, above_top_k = after_top_k ? top_k.prefix : 0;
    float highest = by_weight ? highest_of(part_max + (size_t)row * gridDim.x, gridDim.x) : 0;
    double temperature = number(p, TEMPERATURE);

    for (int i = threadIdx.x; i < n_bins; i += THREADS) count[i] = 0, weight[i] = 0;
    __syncthreads();
    for (int i = first + threadIdx.x; i < min(first + PART, vocab_size); i += THREADS) {
        float x = values[(size_t)row * vocab_size + i];
        unsigned key = key_of(x), bin = key >> shift & (n_bins - 1);
        if (level && key >> (shift + bits) != prefix) continue;
        if (after_top_k && key <= above_top_k) continue;  // the equals that top_k keeps are added below
        atomicAdd(&count[bin], 1u);
        if (by_weight) atomicAdd(&weight[bin], in_units(weight_of(x, highest, temperature)));
    }
    __syncthreads();
    size_t bins = (size_t)row * MAX_BINS;
    for (int i = threadIdx.x; i < n_bins; i += THREADS) {
        if (count[i]) atomicAdd(&counts[bins + i], count[i]);
        if (weight[i]) atomicAdd(&weights[bins + i], weight[i]);
    }
    if (!last_to_come(&tickets[row], gridDim.x)) return;

    Count here = 0, total;  // of this thread's bins, the highest first
    for (int j = 0; j < BINS_EACH; j++) {
        int bin = n_bins - 1 - (threadIdx.x * BINS_EACH + j);
        if (bin < 0) break;
        count[bin] = atomicExch(&counts[bins + bin], 0u);
        weight[bin] = atomicExch(&weights[bins + bin], 0ull);
        bool begins = !level || above_top_k >> (shift + bits) == prefix;
        if (after_top_k && begins && (above_top_k >> shift & (n_bins - 1)) == bin) {
            count[bin] += top_k.ties;
            weight[bin] += top_k.ties * in_units(weight_of(value_of(above_top_k), highest, temperature));
        }
        here += by_weight ? weight[bin] : count[bin];
    }
    Count before = sum_before(here, scan, total);
    if (level == 0) {
        cut.above = 0;
        cut.target = which == FOR_TOP_K ? (double)p[TOP_K] : which == FOR_TOP_LOGPROBS ? (double)p[N_TOP]
                     : fmax(number(p, TOP_P) * (double)total, 1.0);  // the token that crosses top_p is kept
    }
    Count sum = cut.above + before;
    if ((double)sum >= cut.target || (double)(sum + here) < cut.target) return;
    for (int j = 0; j < BINS_EACH; j++) {  // one thread comes here: the one in whose bins the target is reached
        int bin = n_bins - 1 - (threadIdx.x * BINS_EACH + j);
        Count size = by_weight ? weight[bin] : count[bin];
        if ((double)(sum + size) < cut.target) {
            sum += size;
            continue;
        }
        double each = (double)size / count[bin];
        cut.prefix = prefix << bits | bin;
        cut.ties = (unsigned)fmin(fmax(ceil((cut.target - (double)sum) / each), 1.0), (double)count[bin]);
        cut.above = sum;
        write_cut(cuts, row, which, cut);
        return;
    }
}
