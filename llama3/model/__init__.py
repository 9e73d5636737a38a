"""Llama 3 in NumPy, to be read in this order: rms_norm, rope, attention, feed_forward, linear, kv_cache, batch,
transformer."""
