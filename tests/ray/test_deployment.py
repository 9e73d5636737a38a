"""Deployments on Ray Serve that take long: one in place of another, and one whose model cannot be loaded."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cli.running import PROGRAM
from tests.ray.running import RunningService, ServeCluster, texts
from tests.server.running import LONG, post_request

pytestmark = pytest.mark.slow

DEPLOY = """if True:
    import sys
    from llama3.ray.cluster import cluster
    with cluster(sys.argv[1]):
        from ray import serve
        from llama3.ray.serve import build
        from llama3.ray.settings import Settings
        serve.run(build(Settings(replicas=1, quiet=True)), name="llama3")
"""


def test_a_new_deployment_cuts_no_stream(serve_cluster: ServeCluster, service: RunningService):
    """As scaling in does: a replica that is to end finishes its answers first."""
    undisturbed = texts(service.send(post_request(LONG)))
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(service.send, post_request(LONG)) for _ in range(3)]
        while service.in_flight() < 3:
            time.sleep(0.02)
        ran = serve_cluster.run(sys.executable, "-c", DEPLOY, serve_cluster.address)
        assert ran.returncode == 0, ran.stderr
        assert [texts(answer.result()) for answer in running] == [undisturbed] * 3
    assert len(service.samples("llama3_requests_in_flight")) == 1
    serve_cluster.stop()


def test_a_model_that_cannot_be_loaded_is_one_line(serve_cluster: ServeCluster):
    serve_cluster.stop()
    ran = serve_cluster.run(*PROGRAM, "serve", "--ray", serve_cluster.address, "--replicas", "1", "--model", "/nowhere")
    assert ran.returncode in (1, 2) and ran.stderr.count("\n") == 1 and "/nowhere" in ran.stderr, ran.stderr
