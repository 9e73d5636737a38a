"""One model on several processes, called ranks: each holds a part of every matrix (tensor parallelism).

Reading order: split, channel, group, caches, ranks, cpu, rank. docs/tensor_parallel.md has a picture.
"""
