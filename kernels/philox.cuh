// Random numbers without a state: Philox4x32-10 (Salmon et al. 2011). The same bits as llama3/philox.py.
#pragma once

// The random number of output token `index` under `seed`: a multiple of 2^-53 in [0, 1).
__device__ __forceinline__ double uniform(unsigned long long seed, unsigned long long index) {
    unsigned c0 = (unsigned)index, c1 = (unsigned)(index >> 32), c2 = 0, c3 = 0;
    unsigned k0 = (unsigned)seed, k1 = (unsigned)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        unsigned long long p0 = 0xd2511f53ull * c0, p1 = 0xcd9e8d57ull * c2;
        c0 = (unsigned)(p1 >> 32) ^ c1 ^ k0;
        c2 = (unsigned)(p0 >> 32) ^ c3 ^ k1;
        c1 = (unsigned)p1;
        c3 = (unsigned)p0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return (double)((((unsigned long long)c1 << 32) | c0) >> 11) * 0x1p-53;
}
