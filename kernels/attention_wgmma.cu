// Attention of the many rows of a prompt, for Hopper (H100, H200). attention_prompt.cu computes the same on all GPUs,
// and attention.cu holds the naive kernel. Arrays and tiles are those of attention_prompt.cu. head_dim is 128.
//
// Why another kernel: mma.sync, which attention_prompt.cu uses, reaches about 62 % of what Hopper's tensor cores can
// do. wgmma (wgmma.cuh) reaches all of it. It reads keys and values from shared memory itself, so no instructions and
// no registers are spent on loading them, and its products run while their threads compute softmax.
//
// A block has two warpgroups with 64 rows each; both use the same 128 keys. A turn of a warpgroup:
//
//   tensor cores | scores of the next keys | weights times the current values |
//   threads      |       they wait         | softmax of the next scores       | rescale, next weights |
//
// While one warpgroup's tensor cores would be idle, they work for the other one. Copies of the keys and values of the
// next turn run all the time; a barrier at the beginning of a turn says that they have arrived.
//
// Launch: (n_heads, n_tiles) blocks of 256 threads, 161 KB of dynamic shared memory: one block on an SM.
// Cost:   counted in the machine code for sm_90a (benchmarks/gpu_attention_counts.py), not measured. For 128 keys, a
//         warp executes 16 HGMMA (its share of the products) and 620 other instructions, among them 66 MUFU (exp2). The
//         eight warps of an SM need for this
//           2,048 cycles of the tensor cores
//           1,792 cycles of shared memory, which also feeds the tensor cores: 128 bytes each
//           1,240 issue slots of each of the four schedulers
//         If products and other instructions of a scheduler never overlapped, an H100 at 1.755 GHz would do
//         582 TFLOP/s for a causal prompt of 8,192 tokens. Expect less: FlashAttention 3, where one warpgroup only
//         copies and the others take turns, is published at about 600.
#include "attention_prompt.cuh"
#include "wgmma.cuh"

static_assert(HEAD_DIM == 128);
constexpr int THREADS = 256, KEYS = 128;  // KEYS: that a block takes at a time
constexpr int GROUP_ROWS = 64;            // rows of a warpgroup
constexpr int KEY_BLOCKS = KEYS / 8;      // of 8, as in the drawing of attention_prompt.cuh
constexpr int TILE_PANEL = 128 * PANEL, TILE = HEAD_DIM / PANEL * TILE_PANEL;  // elements of 128 rows, keys or values

// Copies rows 0 to n - 1 of a tile of 128 rows; the other rows become zero.
__device__ __forceinline__ void copy_tile(bf16* tile, const bf16* from, size_t row_stride, int n) {
    constexpr int PIECES = HEAD_DIM / 8, AT_ONCE = THREADS / PIECES;  // pieces of a row; rows that a pass copies
    int row = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
    tile += piece / 8 * TILE_PANEL + place(row, piece % 8);
    from += row * row_stride + piece * 8;
#pragma unroll
    for (int i = 0; i < 128; i += AT_ONCE)  // a multiple of 8: the piece has the same place in each row
        copy_async(tile + i * PANEL, from + i * row_stride, row + i < n);
}

// Starts scores (64, 128) = the warpgroup's 64 queries times 128 keys.
__device__ __forceinline__ void multiply_keys(float (&scores)[KEY_BLOCKS][4], const bf16* queries, const bf16* keys) {
#pragma unroll
    for (int c = 0; c < HEAD_DIM; c += 16) {
        int at = c / PANEL * TILE_PANEL + c % PANEL;
        multiply(scores, descriptor(queries + at, 16), descriptor(keys + at, 16), c > 0);
    }
    wgmma_commit();
}

// Starts partial_out (64, head_dim) += weights (64, 128) times 128 values.
__device__ __forceinline__ void add_values(float (&partial_out)[CHANNEL_BLOCKS][4],
                                           const unsigned (&weights)[KEYS / 16][4], const bf16* values) {
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++)
        multiply(partial_out, weights[k], descriptor(values + k * 16 * PANEL, TILE_PANEL * 2));
    wgmma_commit();
}

__device__ __forceinline__ void pack(unsigned (&weights)[KEYS / 16][4], const float (&scores)[KEY_BLOCKS][4]) {
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) pack_weights(weights[k], scores, 2 * k);
}

// Copies one block of 128 keys, or of values, if there are any left. Even and odd blocks take turns in the two tiles.
__device__ __forceinline__ void copy_block(bf16* tiles, const bf16* cache, int block, int n_keys) {
    int first = block * KEYS;
    if (first < n_keys) copy_tile(tiles + block % 2 * TILE, cache + (size_t)first * HEAD_DIM, HEAD_DIM, n_keys - first);
}

// Waits for this thread's copies except the latest LEFT groups, makes them visible to the tensor cores, and waits for
// the other threads: their copies, and their use of the tiles that will be overwritten next.
template <int LEFT>
__device__ __forceinline__ void wait_for_tiles() {
    wait_copies<LEFT>();
    fence_async_proxy();
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_wgmma(const bf16* q, const bf16* k_cache, const bf16* v_cache, const int* tiles, bf16* out, int n_heads,
                    int n_kv_heads, int max_len) {
    size_t begin = (size_t)dynamic_shared();
    bf16* queries = reinterpret_cast<bf16*>((begin + 1023) / 1024 * 1024);
    bf16 *keys = queries + TILE, *values = keys + 2 * TILE;  // two tiles each: of an even and of an odd block
    wait_for_predecessor();
    let_successor_start();
    const auto [n_rows, first_position, row_stride, rows_at, keys_at] =
        tile_of_block(tiles, n_heads, n_kv_heads, max_len);
    k_cache += keys_at;
    v_cache += keys_at;
    int n_keys = first_position + n_rows, last_block = (n_keys - 1) / KEYS;

    int group_row = threadIdx.x / 128 * GROUP_ROWS, lane = threadIdx.x % 32;
    int row = threadIdx.x / 32 * 16 + lane / 4, column = lane % 4 * 2;  // the first of this lane's rows, and columns
    float scores[KEY_BLOCKS][4] = {}, partial_out[CHANNEL_BLOCKS][4] = {};
    float largest[2] = {MASKED, MASKED}, sums[2] = {}, shrink[2];
    unsigned weights[KEYS / 16][4];  // operand A

    copy_tile(queries, q + rows_at, row_stride, n_rows);
    copy_block(keys, k_cache, 0, n_keys);
    commit_copies();
    copy_block(values, v_cache, 0, n_keys);
    copy_block(keys, k_cache, 1, n_keys);
    commit_copies();
    queries += group_row * PANEL;

    wait_for_tiles<1>();
    wgmma_fence();
    multiply_keys(scores, queries, keys);
    wgmma_wait<0>(scores);
    if (KEYS > first_position + group_row) mask(scores, column, first_position + row);
    update_softmax(scores, largest, sums, shrink);
    pack(weights, scores);
    for (int block = 0, next = 1; block < last_block; block++, next++) {
        wait_for_tiles<0>();
        copy_block(values, v_cache, next, n_keys);
        copy_block(keys, k_cache, next + 1, n_keys);
        commit_copies();

        wgmma_fence();
        multiply_keys(scores, queries, keys + next % 2 * TILE);
        add_values(partial_out, weights, values + block % 2 * TILE);
        wgmma_wait<1>(scores);
        if ((next + 1) * KEYS > first_position + group_row) mask(scores, next * KEYS + column, first_position + row);
        update_softmax(scores, largest, sums, shrink);
        wgmma_wait<0>(partial_out);
        rescale(partial_out, shrink);
        pack(weights, scores);
    }
    wait_for_tiles<0>();
    wgmma_fence();
    add_values(partial_out, weights, values + last_block % 2 * TILE);
    wgmma_wait<0>(partial_out);
    store(out + rows_at + column, partial_out, sums, row_stride, row, n_rows);
}
