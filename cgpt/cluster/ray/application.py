"""Builds the application, as `serve run cgpt.cluster.ray:app model=DIR` and a YAML file ask for it."""

# No `from __future__ import annotations`: Ray reads the type of app's argument.
import os

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from cgpt.cluster.ray.front import Front
from cgpt.cluster.ray.options import FleetOptions
from cgpt.cluster.ray.replica import Replica
from cgpt.cluster.ray.router import PrefixRouter

HEAD_NODE = "node:__internal_head__"  # a resource that it has
CONNECTIONS = 4096  # requests that a front has at a time


def app(options: FleetOptions) -> Application:
    """Returns the Ray Serve application of a fleet. $CGPT_API_KEY is taken where this runs, if no key is given."""
    model = os.path.abspath(options.model) if os.path.isdir(options.model) else options.model
    key = options.api_key or os.environ.get("CGPT_API_KEY") or None
    options = options.model_copy(update={"model": model, "api_key": None})
    number: dict[str, object] = {"num_replicas": options.replicas}
    if options.max_replicas is not None:
        scaling = {"min_replicas": options.min_replicas, "max_replicas": options.max_replicas}
        number = {"autoscaling_config": {**scaling, "target_ongoing_requests": options.target_ongoing}}
    replicas = serve.deployment(
        name="Replica",
        max_ongoing_requests=options.max_running,
        max_queued_requests=options.max_waiting,
        graceful_shutdown_timeout_s=options.drain,
        max_surge_percent=options.surge,
        ray_actor_options={"num_cpus": options.cpus},
        request_router_config=RequestRouterConfig(request_router_class=PrefixRouter),
        **number,
    )(Replica)
    # One front is where the cluster's head is, so that it is lost with no other node. Of several each is on a node of
    # its own, and proxies prefer that of theirs.
    placement: dict[str, object] = {"ray_actor_options": {"num_cpus": 0, "resources": {HEAD_NODE: 0.001}}}
    if options.fronts > 1:
        placement = {"ray_actor_options": {"num_cpus": 0}, "max_replicas_per_node": 1}
    fronts = serve.deployment(
        name="Front",
        num_replicas=options.fronts,
        max_ongoing_requests=CONNECTIONS,
        graceful_shutdown_timeout_s=options.drain,
        max_surge_percent=0 if options.fronts > 1 else 100,  # it takes no CPU: the new one comes first
        **placement,
    )(serve.ingress()(Front))
    return fronts.bind(replicas.bind(options, key is not None), options, key)
