"""Llama 3 in NumPy. Read in this order: rms_norm, rope, attention, feed_forward, linear, kv_cache, batch, transformer."""
