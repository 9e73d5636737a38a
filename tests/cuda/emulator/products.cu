// wgmma, used as it should be if bug is 0: out (64, 128) = a b^T + a[:, :16] v, with a (64, 64), b (128, 64), v (16, 128).
// Any other number plants one bug, of a kind that could pass unnoticed on a GPU. test_wgmma.py says what each must cause.
#include "common.cuh"
#include "wgmma.cuh"

extern "C" __global__ void __launch_bounds__(128)
    products(const bf16* a, const bf16* b, const bf16* v, float* out, int bug) {
    size_t begin = (size_t)dynamic_shared(), aligned = (begin + 1023) / 1024 * 1024;
    bf16* tile_a = reinterpret_cast<bf16*>(bug == 1 ? begin : aligned);  // (64, 64)
    bf16* tile_b = tile_a + 64 * PANEL;                                  // (128, 64)
    bf16* tile_v = tile_b + 128 * PANEL;                                 // two panels (16, 64)
    for (int i = threadIdx.x; i < 64 * 8; i += 128) copy_async(tile_a + place(i / 8, i % 8), a + i * 8);
    for (int i = threadIdx.x; i < 128 * 8; i += 128)
        copy_async(tile_b + (bug == 2 ? i * 8 : place(i / 8, i % 8)), b + i * 8);
    for (int i = threadIdx.x; i < 16 * 16; i += 128)
        copy_async(tile_v + i % 16 / 8 * 16 * PANEL + place(i / 16, i % 8), v + i * 8);
    commit_copies();

    int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    unsigned weights[4];  // a[:, :16] as operand A
    for (int i = 0; i < 4; i++)
        weights[i] = *reinterpret_cast<const unsigned*>(a + (row + i % 2 * 8) * 64 + column + i / 2 * 8);
    float d[16][4] = {};

    if (bug == 3) fence_async_proxy();
    if (bug != 4) wait_copies<0>();
    if (bug != 3 && bug != 5) fence_async_proxy();
    if (bug != 6) __syncthreads();
    if (bug != 7) wgmma_fence();
    for (int c = 0; c < 64; c += 16)
        multiply(d, descriptor(tile_a + c, 16), descriptor(tile_b + c + (bug == 8 ? PANEL : 0), 16), c > 0);
    wgmma_commit();
    unsigned leading = (bug == 9 ? 512 : bug == 10 ? 8 : 16) * PANEL * 2;
    const bf16* first = tile_v - (bug == 11 && threadIdx.x >= 64 ? 8 * PANEL : 0);
    if (bug != 12 || threadIdx.x < 96) multiply(d, weights, descriptor(first, leading));
    if (bug != 13) wgmma_commit();
    float early = d[2][3];
    if (bug == 14) d[3][1] = 2;
    if (bug == 15) weights[1] = 0;
    if (bug == 16) copy_async(tile_b, b);
    if (bug == 17)
        wgmma_wait<1>(d);
    else if (bug != 18)
        wgmma_wait<0>(d);
    if (bug == 19) d[2][3] = early;
    for (int j = 0; j < 16; j++)
        for (int i = 0; i < 4; i++) out[(row + i / 2 * 8) * 128 + j * 8 + column + i % 2] = d[j][i];
}
