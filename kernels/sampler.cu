// From logits to a token, as llama3/sampler.py: penalties, mask, temperature, top_k, top_p, min_p, and one draw.
//   logits (T, vocab_size) float; a row's parameters, its place in the random numbers, and all else in device memory,
//   so that a graph that ends with the draw needs nothing of the host:
//   params (T, 16): see Param; mask (T, words): bit i % 32 of word i / 32 allows token i; history (slots, vocab_size):
//   2 * (how often in the output) + (in prompt or output); tokens, positions (T): the draw writes the next token and
//   steps on; position -1 is nobody's row, which draws nothing.
// What top_k, top_p and min_p keep is a head of one list, the tokens by logit and among equals by id: all above some
// logit, and of those that equal it the first few. A histogram of the logits' bits, 11, 11 and 10 of them at a time,
// finds that logit without sorting: of counts for top_k, of weights for top_p. Weights are added up as whole multiples
// of 2^-46 there, so that the order of the additions does not matter; the draw's own sums are float64.
//
// Launch: (parts, T) blocks of 256 threads, a part 4,096 tokens; sampler_draw and sampler_top one block a row.
//         sampler_adjust; three times sampler_select for top_k, top_p and the most likely tokens each; sampler_weigh;
//         sampler_draw; sampler_top. What a row does not ask for returns at once.
// Bytes:  of a row of 128,256 tokens 0.5 MB of logits, from the second-level cache: under a microsecond a launch.
//         Thirteen launches, at 1.3 microseconds each in a graph: 17 microseconds, half a percent of a step of the 8B
//         model, and about as much again where every filter is on.
#include "common.cuh"
#include "philox.cuh"

enum Param {  // 64 bits each; what is not a whole number is a double's bits
    TEMPERATURE, TOP_P, TOP_K, MIN_P, REPETITION, FREQUENCY, PRESENCE, SEED, INDEX, N_TOP, HAS_MASK, SLOT, PENALISES,
    N_PARAMS = 16
};  // MIN_P: temperature * log(min_p); off: top_p 1, top_k 0, MIN_P -infinity, N_TOP -1

enum Result { TOKEN, STATUS, LOGPROB, TOP_IDS, MAX_TOP = 32, TOP_LOGPROBS = TOP_IDS + MAX_TOP, N_RESULTS = 80 };
enum Status { DRAWN, BAD_LOGIT, NONE_LEFT, NOBODY };  // BAD_LOGIT: TOKEN is the first whose logit is NaN or +infinity

constexpr int THREADS = 256;
constexpr int PART = 4096, EACH = PART / THREADS;  // tokens of a block, and of a thread of sampler_draw
constexpr int MAX_BINS = 2048, BINS_EACH = MAX_BINS / THREADS;
constexpr double UNIT = 0x1p46;  // a weight of 1 in a histogram: 2^17 of them fit in 64 bits

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

__device__ __forceinline__ Count in_units(double weight) { return (Count)llrint(weight * UNIT); }

// The raw logit less the penalties, in float64, rounded once. Without fused multiply-adds, as NumPy.
__device__ __forceinline__ float penalised(float logit, unsigned history, const Int* params) {
    if (!(history & 1)) return logit;
    double value = logit, repetition = number(params, REPETITION), count = history >> 1;
    value = value > 0 ? value / repetition : __dmul_rn(value, repetition);
    double often = __dmul_rn(number(params, FREQUENCY), count), once = number(params, PRESENCE) * (count > 0);
    value -= __dadd_rn(often, once);
    return (float)fmin(value, 3.4028234663852886e38);  // a tiny repetition penalty must not make infinity
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

// The same without histograms and parts, a thread a row: a token is kept if few enough are ahead of it, and light enough
// ones. Adjusted logits come from sampler_adjust; chosen (T). It takes vocab_size^2 steps.
extern "C" __global__ void sampler_naive(const float* adjusted, const Int* params, int* chosen, int rows, int n) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    const float* x = adjusted + (size_t)row * n;
    const Int* p = params + (size_t)row * N_PARAMS;
    double temperature = number(p, TEMPERATURE), sum = 0, total = 0, kept_by_top_k = 0;
    int first = 0;
    for (int i = 1; i < n; i++) first = x[i] > x[first] ? i : first;
    chosen[row] = first;
    if (temperature == 0) return;
    for (int pass = 0; pass < 3; pass++) {  // the weight that top_k keeps; the weight that all keep; the draw
        for (int i = 0; i < n; i++) {
            double ahead = 0;
            int count = 0;
            for (int j = 0; j < n; j++) {
                bool is_ahead = x[j] > x[i] || (x[j] == x[i] && j < i);
                count += is_ahead;
                ahead += is_ahead ? weight_of(x[j], x[first], temperature) : 0;
            }
            double weight = weight_of(x[i], x[first], temperature);
            bool kept = !p[TOP_K] || count < p[TOP_K];
            if (pass == 0) kept_by_top_k += kept ? weight : 0;
            kept = kept && (i == first || number(p, TOP_P) == 1 || ahead < number(p, TOP_P) * kept_by_top_k);
            if (!kept || x[i] < (double)x[first] + number(p, MIN_P)) continue;
            if (pass == 1) total += weight;
            if (pass < 2) continue;
            sum += weight;
            if (sum > uniform(p[SEED], p[INDEX]) * total) {
                chosen[row] = i;
                return;
            }
        }
    }
}

// adjusted (T, vocab_size): after penalties and mask. Of each part: part_max (T, parts), its highest adjusted logit;
// part_bad (T, parts), its first token whose raw logit is not below +infinity, or vocab_size; for log-probabilities
// raw_max and raw_sum (T, parts), its highest raw logit and the sum of exp(raw - that).
extern "C" __global__ void __launch_bounds__(THREADS)
    sampler_adjust(const float* logits, const Int* params, const unsigned* mask, const unsigned* history,
                   const int* positions, float* adjusted, float* part_max, int* part_bad, float* raw_max,
                   double* raw_sum, int vocab_size) {
    __shared__ float floats[THREADS];
    __shared__ double doubles[THREADS];
    __shared__ int ints[THREADS];
    wait_for_predecessor();
    let_successor_start();
    int row = blockIdx.y, part = row * gridDim.x + blockIdx.x, first = blockIdx.x * PART;
    if (positions[row] < 0) return;
    const Int* p = params + (size_t)row * N_PARAMS;
    const float* raw = logits + (size_t)row * vocab_size;
    const unsigned* allowed = mask + (size_t)row * ((vocab_size + 31) / 32);
    const unsigned* past = history + (size_t)p[SLOT] * vocab_size;

    float most = -INFINITY, most_raw = -INFINITY;
    int bad = vocab_size;
    for (int i = first + threadIdx.x; i < min(first + PART, vocab_size); i += THREADS) {
        float x = raw[i];
        if (!(x < INFINITY)) bad = min(bad, i);
        most_raw = fmaxf(most_raw, x);
        if (p[PENALISES]) x = penalised(x, past[i], p);
        if (p[HAS_MASK] && !(allowed[i / 32] >> i % 32 & 1)) x = -INFINITY;
        adjusted[(size_t)row * vocab_size + i] = x;
        most = fmaxf(most, x);
    }
    most = block_max(most, floats);
    bad = -block_max(-bad, ints);
    if (threadIdx.x == 0) {
        part_max[part] = most;
        part_bad[part] = bad;
    }
    if (p[N_TOP] < 0) return;
    most_raw = block_max(most_raw, floats);
    double sum = 0, total;
    for (int i = first + threadIdx.x; i < min(first + PART, vocab_size); i += THREADS) {
        if (most_raw > -INFINITY) sum += weight_of(raw[i], most_raw, 1);
    }
    sum_before(sum, doubles, total);
    if (threadIdx.x == 0) {
        raw_max[part] = most_raw;
        raw_sum[part] = total;
    }
}

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

// Level 0, 1, 2 of a selection: the histogram of the next bits of the keys that begin with the prefix. The block that is
// the last of its row to have added its part looks where the target is reached.
// counts, weights (T, MAX_BINS), tickets (T): zero before, and zero again afterwards; cuts (T, 3, 4).
extern "C" __global__ void __launch_bounds__(THREADS)
    sampler_select(const float* values, const Int* params, const int* positions, const float* part_max, Int* cuts,
                   unsigned* counts, Count* weights, unsigned* tickets, int vocab_size, int which, int level) {
    __shared__ unsigned count[MAX_BINS];
    __shared__ Count weight[MAX_BINS];
    __shared__ Count scan[THREADS];
    __shared__ int last;
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
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(&tickets[row], 1u) == gridDim.x - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();

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
    if (threadIdx.x == 0) tickets[row] = 0;
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

// Which tokens of a row may be drawn: all above a key, some that equal it, none below a logit.
struct Head {
    unsigned lowest, ties;
    double least;
};

__device__ __forceinline__ Head head_of(const Int* params, const Int* cuts, int row, float highest, int vocab_size) {
    Head head = {0, 0, __dadd_rn(highest, number(params, MIN_P))};
    for (int which = FOR_TOP_K; which <= FOR_TOP_P; which++) {
        if (!is_on(params, which, vocab_size)) continue;
        Cut cut = read_cut(cuts, row, which);
        head.lowest = cut.prefix;
        head.ties = cut.ties;
    }
    return head;
}

// part_sum, part_ties (T, parts): the weight of each part's tokens above the lowest key, and how many equal it
extern "C" __global__ void __launch_bounds__(THREADS)
    sampler_weigh(const float* adjusted, const Int* params, const int* positions, const float* part_max,
                  const Int* cuts, double* part_sum, int* part_ties, int vocab_size) {
    __shared__ double doubles[THREADS];
    __shared__ int ints[THREADS];
    wait_for_predecessor();
    let_successor_start();
    int row = blockIdx.y, part = row * gridDim.x + blockIdx.x, first = blockIdx.x * PART;
    const Int* p = params + (size_t)row * N_PARAMS;
    double temperature = number(p, TEMPERATURE);
    if (positions[row] < 0 || temperature == 0) return;
    float highest = highest_of(part_max + (size_t)row * gridDim.x, gridDim.x);
    Head head = head_of(p, cuts, row, highest, vocab_size);
    double sum = 0, total_sum;
    int ties = 0, total_ties;
    for (int i = first + threadIdx.x; i < min(first + PART, vocab_size); i += THREADS) {
        float x = adjusted[(size_t)row * vocab_size + i];
        unsigned key = key_of(x);
        if (x < head.least) continue;
        ties += key == head.lowest;
        if (key > head.lowest) sum += weight_of(x, highest, temperature);
    }
    sum_before(sum, doubles, total_sum);
    sum_before(ties, ints, total_ties);
    if (threadIdx.x == 0) {
        part_sum[part] = total_sum;
        part_ties[part] = total_ties;
    }
}

// The draw: results (T, N_RESULTS) and the row's next step.
extern "C" __global__ void __launch_bounds__(THREADS)
    sampler_draw(const float* logits, const float* adjusted, const float* part_max, const int* part_bad,
                 const float* raw_max, const double* raw_sum, const double* part_sum, const int* part_ties,
                 const Int* cuts, Int* params, unsigned* history, int* tokens, int* positions, Int* results,
                 int vocab_size, int n_parts) {
    __shared__ double doubles[THREADS];
    __shared__ int ints[THREADS];
    __shared__ int chosen_part, ties_before, token;
    __shared__ double left;  // of the target, when the chosen part begins
    wait_for_predecessor();
    let_successor_start();
    int row = blockIdx.x;
    Int *p = params + (size_t)row * N_PARAMS, *result = results + (size_t)row * N_RESULTS;
    const float* x_row = adjusted + (size_t)row * vocab_size;
    size_t parts = (size_t)row * n_parts;
    if (positions[row] < 0) {
        if (threadIdx.x == 0) result[STATUS] = NOBODY;
        return;
    }
    int bad = vocab_size;
    for (int i = n_parts - 1; i >= 0; i--) bad = min(bad, part_bad[parts + i]);
    float highest = highest_of(part_max + parts, n_parts);
    if (bad < vocab_size || highest == -INFINITY) {
        if (threadIdx.x == 0) {
            result[STATUS] = bad < vocab_size ? BAD_LOGIT : NONE_LEFT;
            result[TOKEN] = bad;
        }
        return;
    }
    double temperature = number(p, TEMPERATURE);
    Head head = head_of(p, cuts, row, highest, vocab_size);
    double of_a_tie = 0;
    if (head.lowest) {
        float x = value_of(head.lowest);
        of_a_tie = x < head.least ? 0 : weight_of(x, highest, temperature);
    }

    if (threadIdx.x == 0) {  // the part
        chosen_part = 0;
        ties_before = 0;
        left = 0;
        if (temperature == 0) {
            while (part_max[parts + chosen_part] < highest) chosen_part++;
        } else {
            double total = 0;
            for (int i = 0, ties = 0; i < n_parts; i++) {
                int kept = min(part_ties[parts + i], (int)head.ties - ties);
                total += part_sum[parts + i] + kept * of_a_tie;
                ties += kept;
            }
            double target = uniform((Count)p[SEED], (Count)p[INDEX]) * total, sum = 0;
            int last_with_weight = 0;
            bool found = false;
            for (int i = 0, ties = 0; i < n_parts && !found; i++) {
                int kept = min(part_ties[parts + i], (int)head.ties - ties);
                double here = part_sum[parts + i] + kept * of_a_tie;
                if (here > 0) {
                    last_with_weight = i;
                    ties_before = ties;
                    left = target - sum;
                }
                sum += here;
                ties += kept;
                found = sum > target;
            }
            chosen_part = last_with_weight;
        }
        token = -1;
    }
    __syncthreads();

    // The token: each thread looks at EACH neighbours.
    int first = chosen_part * PART + threadIdx.x * EACH, end = min(first + EACH, vocab_size), ties = 0, all_ties;
    for (int i = first; i < end; i++) ties += key_of(x_row[i]) == head.lowest && !(x_row[i] < head.least);
    int tie = ties_before + sum_before(ties, ints, all_ties), tie_again = tie;
    double mine = 0, all;
    int last_kept = -1;
    for (int i = first; i < end; i++) {
        float x = x_row[i];
        unsigned key = key_of(x);
        bool kept = key > head.lowest || (key == head.lowest && tie++ < (int)head.ties);
        if (temperature == 0 ? x == highest : kept && !(x < head.least)) {
            double weight = temperature == 0 ? 0 : weight_of(x, highest, temperature);
            mine += weight;
            if (last_kept < 0 || temperature > 0) last_kept = weight > 0 || temperature == 0 ? i : last_kept;
        }
    }
    double before = sum_before(mine, doubles, all);
    if (temperature == 0) {
        int found = -block_max(last_kept < 0 ? -vocab_size : -last_kept, ints);
        if (threadIdx.x == 0) token = found;
    } else {
        int last = block_max(last_kept, ints);
        if (threadIdx.x == 0) token = last;  // rounding may leave the target above the part's whole weight
        __syncthreads();
        double sum = before;
        if (before <= left && before + mine > left) {  // one thread
            for (int i = first; i < end; i++) {
                float x = x_row[i];
                unsigned key = key_of(x);
                bool kept = key > head.lowest || (key == head.lowest && tie_again++ < (int)head.ties);
                if (!kept || x < head.least) continue;
                sum += weight_of(x, highest, temperature);
                if (sum > left) {
                    token = i;
                    break;
                }
            }
        }
    }
    __syncthreads();
    if (threadIdx.x) return;

    result[STATUS] = DRAWN;
    result[TOKEN] = token;
    if (p[N_TOP] >= 0) {  // log-softmax of the raw logits
        float most = highest_of(raw_max + parts, n_parts);
        double sum = 0;
        for (int i = 0; i < n_parts; i++) {
            if (raw_max[parts + i] > -INFINITY) sum += raw_sum[parts + i] * weight_of(raw_max[parts + i], most, 1);
        }
        double log_total = (double)most + log(sum);
        result[LOGPROB] = __double_as_longlong((double)logits[(size_t)row * vocab_size + token] - log_total);
        result[TOP_LOGPROBS] = __double_as_longlong(log_total);  // sampler_top takes it from there
    }
    if (p[PENALISES]) {
        unsigned* past = history + (size_t)p[SLOT] * vocab_size + token;
        *past = (*past + 2) | 1;
    }
    p[INDEX]++;
    tokens[row] = token;
    positions[row]++;
}

// The N_TOP <= MAX_TOP most likely tokens by raw logit, highest first, among equals by id; with their log-probabilities.
extern "C" __global__ void __launch_bounds__(THREADS)
    sampler_top(const float* logits, const Int* params, const int* positions, const Int* cuts, Int* results,
                int vocab_size) {
    __shared__ int ids[MAX_TOP];
    __shared__ int ints[THREADS];
    wait_for_predecessor();
    let_successor_start();
    int row = blockIdx.x, n = (int)params[(size_t)row * N_PARAMS + N_TOP];
    Int* result = results + (size_t)row * N_RESULTS;
    if (positions[row] < 0 || n <= 0 || n > MAX_TOP || result[STATUS] != DRAWN) return;
    const float* x = logits + (size_t)row * vocab_size;
    Cut cut = {0, (unsigned)vocab_size};
    if (n < vocab_size) cut = read_cut(cuts, row, FOR_TOP_LOGPROBS);
    n = min(n, vocab_size);

    int found = 0, ties = 0;  // in front of this thread's tokens, in the order of their ids
    for (int first = 0; first < vocab_size; first += THREADS) {
        int i = first + threadIdx.x, n_kept, n_ties;
        unsigned key = i < vocab_size ? key_of(x[i]) : 0;
        bool equal = key == cut.prefix && i < vocab_size;
        int tie = ties + sum_before((int)equal, ints, n_ties);
        bool kept = i < vocab_size && (key > cut.prefix || (equal && tie < (int)cut.ties));
        int place = found + sum_before((int)kept, ints, n_kept);
        if (kept && place < n) ids[place] = i;
        found += n_kept;
        ties += n_ties;
    }
    __syncthreads();
    if (threadIdx.x >= n) return;
    int mine = ids[threadIdx.x], place = 0;
    for (int j = 0; j < n; j++) place += x[ids[j]] > x[mine] || (x[ids[j]] == x[mine] && ids[j] < mine);
    result[TOP_IDS + place] = mine;
    result[TOP_LOGPROBS + place + 1] = __double_as_longlong((double)x[mine] - __longlong_as_double(result[TOP_LOGPROBS]));
}
