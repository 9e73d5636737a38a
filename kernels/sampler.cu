// From logits to a token, as in llama3/sampler.py: penalties, mask, temperature, top_k, top_p, min_p, and one draw.
//   logits (T, vocab_size) float
//   params (T, 16): see Param; mask (T, words): bit i % 32 of word i / 32 allows token i
//   history (slots, vocab_size): 2 * (how often the token is in the output) + (1 if it is in the prompt or the output)
//   tokens, positions (T): the draw writes the next token, and adds 1 to the position. A padding row has position -1
//   and draws nothing.
// All of this is in device memory, including the index of the next random number (INDEX of params). So a graph that
// ends with the draw needs nothing from the host.
// Imagine the tokens sorted by logit, highest first, and equal ones by id: top_k, top_p and min_p keep the beginning of
// this list. That is all tokens above some logit, and the first few of the tokens with exactly this logit.
// sampler_select.cu finds that logit.
//
// Launch: (parts, T) blocks of 256 threads, where a part is 4,096 tokens; sampler_draw and sampler_top take one block a
//         row. The order is: sampler_adjust; sampler_select three times each for top_k, top_p and the most likely
//         tokens; sampler_weigh; sampler_draw; sampler_top. The blocks of a row that does not need a kernel return at
//         once. If every row is greedy, sampler_adjust and sampler_draw are enough.
// Bytes:  a row of 128,256 tokens has 0.5 MB of logits, which come from the L2 cache: under a microsecond a launch.
//         Thirteen launches, at an assumed 1.3 microseconds each in a graph, take 17 microseconds, half a percent of a
//         step of the 8B model; the two of a greedy draw take 3. With every filter on, they take about twice as long.
#include "philox.cuh"
#include "sampler.cuh"

// The naive kernel: a thread takes a row, without histograms and parts. A token is kept if the tokens ahead of it are
// few enough (top_k) and have little enough weight (top_p). It takes vocab_size^2 steps.
//   adjusted (T, vocab_size): from sampler_adjust; chosen (T): the tokens
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
    for (int pass = 0; pass < 3; pass++) {  // the weight that top_k keeps; the weight that all filters keep; the draw
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

// The raw logit minus the penalties, in float64, rounded once. No fused multiply-adds, so that it agrees with NumPy.
__device__ __forceinline__ float penalised(float logit, unsigned history, const Int* params) {
    if (!(history & 1)) return logit;
    double value = logit, repetition = number(params, REPETITION), count = history >> 1;
    value = value > 0 ? value / repetition : __dmul_rn(value, repetition);
    double often = __dmul_rn(number(params, FREQUENCY), count), once = number(params, PRESENCE) * (count > 0);
    value -= __dadd_rn(often, once);
    return (float)fmin(value, 3.4028234663852886e38);  // a tiny repetition penalty must not give infinity
}

// Writes the logits after penalties and mask, adjusted (T, vocab_size), and these numbers of each part:
//   part_max (T, parts): the highest adjusted logit
//   part_bad (T, parts): the first token whose raw logit is NaN or +infinity; vocab_size if there is none
//   raw_max, raw_sum (T, parts), for log-probabilities: the highest raw logit, and the sum of exp(raw logit - raw_max)
extern "C" __global__ void __launch_bounds__(THREADS)
    sampler_adjust(const float* logits, const Int* params, const unsigned* mask, const unsigned* history,
                   const int* positions, float* adjusted, float* part_max, int* part_bad, float* raw_max,
                   double* raw_sum, int vocab_size) {
    __shared__ float floats[THREADS];
    __shared__ double doubles[THREADS];
    __shared__ int ints[THREADS];
    wait_for_predecessor();
    let_successor_start();
    int row = blockIdx.y, part = row * gridDim.x + blockIdx.x, first = blockIdx.x * TOKENS_PER_BLOCK;
    if (positions[row] < 0) return;
    const Int* p = params + (size_t)row * N_PARAMS;
    const float* raw = logits + (size_t)row * vocab_size;
    const unsigned* allowed = mask + (size_t)row * ((vocab_size + 31) / 32);
    const unsigned* past = history + (size_t)p[SLOT] * vocab_size;

    float most = -INFINITY, most_raw = -INFINITY;
    int bad = vocab_size;
    for (int i = first + threadIdx.x; i < min(first + TOKENS_PER_BLOCK, vocab_size); i += THREADS) {
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
    for (int i = first + threadIdx.x; i < min(first + TOKENS_PER_BLOCK, vocab_size); i += THREADS) {
        if (most_raw > -INFINITY) sum += weight_of(raw[i], most_raw, 1);
    }
    sum_before(sum, doubles, total);
    if (threadIdx.x == 0) {
        raw_max[part] = most_raw;
        raw_sum[part] = total;
    }
}

// Writes part_sum and part_ties (T, parts): the weight of each part's tokens above lowest_key, and the number of tokens
// that have this key.
extern "C" __global__ void __launch_bounds__(THREADS)
    sampler_weigh(const float* adjusted, const Int* params, const int* positions, const float* part_max,
                  const Int* cuts, double* part_sum, int* part_ties, int vocab_size) {
    __shared__ double doubles[THREADS];
    __shared__ int ints[THREADS];
    wait_for_predecessor();
    let_successor_start();
    int row = blockIdx.y, part = row * gridDim.x + blockIdx.x, first = blockIdx.x * TOKENS_PER_BLOCK;
    const Int* p = params + (size_t)row * N_PARAMS;
    double temperature = number(p, TEMPERATURE);
    if (positions[row] < 0 || temperature == 0) return;
    float highest = highest_of(part_max + (size_t)row * gridDim.x, gridDim.x);
    Survivors survivors = survivors_of(p, cuts, row, highest, vocab_size);
    double sum = 0, total_sum;
    int ties = 0, total_ties;
    for (int i = first + threadIdx.x; i < min(first + TOKENS_PER_BLOCK, vocab_size); i += THREADS) {
        float x = adjusted[(size_t)row * vocab_size + i];
        unsigned key = key_of(x);
        if (x < survivors.lowest_logit) continue;
        ties += key == survivors.lowest_key;
        if (key > survivors.lowest_key) sum += weight_of(x, highest, temperature);
    }
    sum_before(sum, doubles, total_sum);
    sum_before(ties, ints, total_ties);
    if (threadIdx.x == 0) {
        part_sum[part] = total_sum;
        part_ties[part] = total_ties;
    }
}

// The part that holds the drawn token.
struct ChosenPart {
    int index, ties_before;  // ties_before: tokens in earlier parts that have lowest_key and are kept
    double left;             // the target minus the weight of all earlier parts
};

// Temperature 0: the first part that has the highest logit. Otherwise: the part in which the running weight passes the
// target, a random share of the total. part_max, part_sum and part_ties begin at the row.
__device__ __forceinline__ ChosenPart choose_part(const Int* params, const float* part_max, const double* part_sum,
                                                  const int* part_ties, int n_parts, const Survivors& survivors,
                                                  float highest) {
    ChosenPart chosen = {0, 0, 0};
    double temperature = number(params, TEMPERATURE), of_a_tie = 0;  // of_a_tie: the weight of lowest_key
    if (temperature == 0) {
        while (part_max[chosen.index] < highest) chosen.index++;
        return chosen;
    }
    float x = value_of(survivors.lowest_key);
    if (survivors.lowest_key && !(x < survivors.lowest_logit)) of_a_tie = weight_of(x, highest, temperature);
    double total = 0;
    for (int i = 0, ties = 0; i < n_parts; i++) {
        int kept = min(part_ties[i], (int)survivors.ties - ties);
        total += part_sum[i] + kept * of_a_tie;
        ties += kept;
    }
    double target = uniform((Count)params[SEED], (Count)params[INDEX]) * total, sum = 0;
    for (int i = 0, ties = 0; i < n_parts && !(sum > target); i++) {
        int kept = min(part_ties[i], (int)survivors.ties - ties);
        double here = part_sum[i] + kept * of_a_tie;
        if (here > 0) chosen = {i, ties, target - sum};  // the last such part, if rounding put target too high
        sum += here;
        ties += kept;
    }
    return chosen;
}

// Temperature 0: the first token of the part that has the highest logit. All threads of the block call it.
__device__ __forceinline__ int first_highest(const float* x, int part, float highest, int vocab_size, int* ints) {
    int first = part * TOKENS_PER_BLOCK + threadIdx.x * TOKENS_PER_THREAD, found = vocab_size;
    for (int i = min(first + TOKENS_PER_THREAD, vocab_size) - 1; i >= first; i--) found = x[i] == highest ? i : found;
    return -block_max(-found, ints);
}

// True if the filters keep a token. tie: how many earlier tokens of the row have lowest_key; the call adds this token.
__device__ __forceinline__ bool is_kept(float x, const Survivors& survivors, int& tie) {
    unsigned key = key_of(x);
    bool kept = key > survivors.lowest_key || (key == survivors.lowest_key && tie++ < (int)survivors.ties);
    return kept && !(x < survivors.lowest_logit);
}

// Sets *token to the token of the part at which the running weight passes part.left. All threads of the block call it,
// and can read *token after a barrier.
__device__ __forceinline__ void draw_token(const float* x, const ChosenPart& part, const Survivors& survivors,
                                           float highest, double temperature, int vocab_size, double* doubles,
                                           int* ints, int* token) {
    int first = part.index * TOKENS_PER_BLOCK + threadIdx.x * TOKENS_PER_THREAD;
    int end = min(first + TOKENS_PER_THREAD, vocab_size), ties = 0, all_ties;
    for (int i = first; i < end; i++) ties += key_of(x[i]) == survivors.lowest_key && !(x[i] < survivors.lowest_logit);
    int tie = part.ties_before + sum_before(ties, ints, all_ties), tie_again = tie;
    double mine = 0, all;
    int last = -1;
    for (int i = first; i < end; i++) {
        if (!is_kept(x[i], survivors, tie)) continue;
        double weight = weight_of(x[i], highest, temperature);
        mine += weight;
        if (weight > 0) last = i;
    }
    double before = sum_before(mine, doubles, all);
    last = block_max(last, ints);
    if (threadIdx.x == 0) *token = last;  // stays if rounding put the target above the part's weight
    __syncthreads();
    if (!(before <= part.left && before + mine > part.left)) return;
    double sum = before;  // only one thread gets here
    for (int i = first; i < end; i++) {
        if (!is_kept(x[i], survivors, tie_again)) continue;
        sum += weight_of(x[i], highest, temperature);
        if (sum > part.left) {
            *token = i;
            return;
        }
    }
}

// log(sum of exp(raw logit)), which log-softmax subtracts from a logit.
__device__ __forceinline__ double log_total_of(const float* raw_max, const double* raw_sum, int n_parts) {
    float most = highest_of(raw_max, n_parts);
    double sum = 0;
    for (int i = 0; i < n_parts; i++) {
        if (raw_max[i] > -INFINITY) sum += raw_sum[i] * weight_of(raw_max[i], most, 1);
    }
    return (double)most + log(sum);
}

// Draws a token for each row. Writes results (T, N_RESULTS), and makes the row ready for the next step.
extern "C" __global__ void __launch_bounds__(THREADS)
    sampler_draw(const float* logits, const float* adjusted, const float* part_max, const int* part_bad,
                 const float* raw_max, const double* raw_sum, const double* part_sum, const int* part_ties,
                 const Int* cuts, Int* params, unsigned* history, int* tokens, int* positions, Int* results,
                 int vocab_size, int n_parts) {
    __shared__ double doubles[THREADS];
    __shared__ int ints[THREADS];
    __shared__ ChosenPart part;
    __shared__ int token;
    wait_for_predecessor();
    let_successor_start();
    int row = blockIdx.x;
    Int *p = params + (size_t)row * N_PARAMS, *result = results + (size_t)row * N_RESULTS;
    const float* x = adjusted + (size_t)row * vocab_size;
    size_t parts = (size_t)row * n_parts;
    if (positions[row] < 0) {
        if (threadIdx.x == 0) result[STATUS] = PADDING_ROW;
        return;
    }
    int bad = vocab_size;
    for (int i = n_parts - 1; i >= 0; i--) bad = min(bad, part_bad[parts + i]);
    float highest = highest_of(part_max + parts, n_parts);
    if (bad < vocab_size || highest == -INFINITY) {
        if (threadIdx.x == 0) {
            result[STATUS] = bad < vocab_size ? BAD_LOGIT : NONE_LEFT;
            result[TOKEN] = bad;
            if (bad < vocab_size) result[LOGPROB] = __double_as_longlong(logits[(size_t)row * vocab_size + bad]);
        }
        return;
    }
    double temperature = number(p, TEMPERATURE);
    Survivors survivors = survivors_of(p, cuts, row, highest, vocab_size);
    if (threadIdx.x == 0) {
        part = choose_part(p, part_max + parts, part_sum + parts, part_ties + parts, n_parts, survivors, highest);
    }
    __syncthreads();
    if (temperature == 0) {
        int found = first_highest(x, part.index, highest, vocab_size, ints);
        if (threadIdx.x == 0) token = found;
    } else {
        draw_token(x, part, survivors, highest, temperature, vocab_size, doubles, ints, &token);
    }
    __syncthreads();
    if (threadIdx.x) return;

    result[STATUS] = DRAWN;
    result[TOKEN] = token;
    if (p[N_TOP] >= 0) {
        double log_total = log_total_of(raw_max + parts, raw_sum + parts, n_parts);
        result[LOGPROB] = __double_as_longlong((double)logits[(size_t)row * vocab_size + token] - log_total);
        result[TOP_LOGPROBS] = __double_as_longlong(log_total);  // for sampler_top
    }
    if (p[PENALISES]) {
        unsigned* past = history + (size_t)p[SLOT] * vocab_size + token;
        *past = (*past + 2) | 1;
    }
    p[INDEX]++;
    tokens[row] = token;
    positions[row]++;
}
