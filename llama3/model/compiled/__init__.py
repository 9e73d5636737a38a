"""Products and attention, compiled by numba: faster than `linear.py` and `attention.py`, and the same in results.

Nothing here is needed to understand the model, and nothing here runs without the extra `numba`; `linear_choice.py`
decides. Reading order: fits, jit, vectors, linear_numba, aligned, quantised_kernels, linear_quantised, amx_kernels,
linear_amx, amx_quantised_kernels, linear_amx_quantised, attention_numba.
"""
