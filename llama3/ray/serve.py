"""The application for Ray Serve: replicas of the model, and the ingress in front of them.

serve run llama3.ray:app model=weights/demo replicas=2
"""

import os
from dataclasses import replace
from typing import Any

import ray
from ray import serve
from ray.serve.config import RequestRouterConfig

from llama3.errors import RequestError
from llama3.ray.affinity_router import AffinityRouter
from llama3.ray.ingress import Ingress
from llama3.ray.placement import place
from llama3.ray.replica import Load, Replica, load_model
from llama3.ray.settings import Settings, from_args

MOST_ONGOING = 10_000  # no limit of Ray Serve: the replicas themselves answer 429
HEALTH_SECONDS = 2
DRAIN_SECONDS = 600  # how long a replica or an ingress that is to end may go on with its streams


def app(args: dict[str, Any]) -> serve.Application:
    """The builder of the application: `serve run`, `serve deploy` and KubeRay call it. Raises RequestError."""
    settings = from_args(args)
    forbid_open_proxy(settings)
    return build(settings)


def forbid_open_proxy(settings: Settings) -> None:
    """Raise RequestError if HAProxy, which listens on all interfaces, would serve without a token."""
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1" and not settings.token:
        raise RequestError(
            "RAY_SERVE_ENABLE_HA_PROXY=1 can be reached from elsewhere: set LLAMA3_TOKEN or a token file"
        )


def build(settings: Settings, load: Load = load_model) -> serve.Application:
    """load: returns the model, in each replica."""
    if not ray.is_initialized():  # `serve run` calls the builder before it connects; RAY_ADDRESS holds for both
        ray.init(namespace="serve")
    placement = place(settings.device, settings.replicas or None, settings.max_replicas or None)
    settings = replace(settings, device=placement.device)
    count: dict[str, Any] = {"num_replicas": placement.replicas}
    if settings.max_replicas > placement.replicas:
        scaling = {"min_replicas": placement.replicas, "max_replicas": settings.max_replicas}
        count = {"autoscaling_config": {**scaling, "target_ongoing_requests": settings.slots}}
    replicas = serve.deployment(
        Replica,
        name="Replica",
        max_ongoing_requests=MOST_ONGOING,
        ray_actor_options=placement.options,
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
        graceful_shutdown_wait_loop_s=0.2,
        max_constructor_retry_count=3,
        request_router_config=RequestRouterConfig(
            request_router_class=AffinityRouter, request_router_kwargs={"slots": settings.slots}
        ),
        **count,
    ).bind(settings, load)
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        num_replicas=settings.ingresses,
        max_ongoing_requests=MOST_ONGOING,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
        graceful_shutdown_wait_loop_s=0.2,
    )
    return ingress.bind(settings, replicas)
