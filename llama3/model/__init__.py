"""Llama 3 in NumPy. Reading order: weights, rms_norm, rope, attention, linear, quantised, quantised_product, threads,
feed_forward, pages, kv_cache, batch, transformer, summed, lora, split, linear_choice. The folder `compiled` has
products and attention that are compiled for speed. `llama3/plain.py` is the same model without cache, batch and tiles.
"""
