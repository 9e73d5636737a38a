// The most likely tokens of a row, with their log-probabilities, as `logprobs` of llama3/sampler_fast.py computes them:
// by raw logit, the highest first, equal ones by id. sampler_select has found the lowest logit among them, and
// sampler_draw the logarithm of the sum of exp(raw logit).
//
// Launch: a block of 256 threads for each row; it looks at 256 tokens at a time, in the order of their ids. If the row
//         asks for log-probabilities, its block reads 0.5 MB, which takes about 10 microseconds.
#include "sampler.cuh"

// The naive kernel: a thread takes a row, and finds only the ids. A token's place is the number of tokens ahead of it.
// top (rows, MAX_TOP)
extern "C" __global__ void sampler_top_naive(const float* logits, int* top, int rows, int n, int vocab_size) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    const float* x = logits + (size_t)row * vocab_size;
    for (int i = 0; i < vocab_size; i++) {
        int ahead = 0;
        for (int j = 0; j < vocab_size; j++) ahead += x[j] > x[i] || (x[j] == x[i] && j < i);
        if (ahead < n) top[row * MAX_TOP + ahead] = i;
    }
}

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

    int found = 0, ties = 0;  // of the tokens before this pass: how many are kept, and how many have the cut's key
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
    double logprob = (double)x[mine] - __longlong_as_double(result[TOP_LOGPROBS]);
    result[TOP_LOGPROBS + place + 1] = __double_as_longlong(logprob);
}
