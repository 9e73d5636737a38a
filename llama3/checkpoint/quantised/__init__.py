"""Reads checkpoints whose matrices are quantised: config.json names the scheme, and each scheme has a file here.

Reading order: parts, compressed_tensors, fp8, sideways, gptq, awq, bitsandbytes, schemes. docs/quantised.md has the
formulas.
"""
