"""From a checkpoint in bfloat16, float16 or float32 to one in 8 or 4 bits that compressed-tensors reads.

Reading order: scales, packing, source, plan, shard_file, target, write.
"""

from llama3.quantize.write import quantize

__all__ = ["quantize"]
