"""Llama 3 in NumPy. Reading order: weights, rms_norm, rope, attention, linear, threads, feed_forward, pages, kv_cache,
batch, transformer, lora; then the faster products: linear_choice, jit, vectors, linear_numba, amx_kernels,
linear_amx, attention_numba.
`llama3/plain.py` is the same model without cache, batch and tiles.
"""
