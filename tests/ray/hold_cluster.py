"""A program that starts a cluster, prints its address, and ends it at the end of standard input."""

import sys

from llama3.ray.cluster import cluster, import_ray

with cluster("local"):
    print(import_ray().get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
