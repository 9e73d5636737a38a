"""One model on several processes, called ranks: each holds a part of every matrix (tensor parallelism).

Reading order: model/split.py, then channel, group, caches, ranks, cpu, gpu, rank. docs/tensor_parallel.md has a
picture.
"""
