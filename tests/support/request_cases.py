"""Requests and schedulers, as tests write them."""

from cgpt.generation.request import Request
from cgpt.generation.sampling import SamplingParams
from cgpt.generation.scheduler import Scheduler


def make_request(model, prompt, *, constraint=None, **params):
    return Request(model, prompt, SamplingParams(**params), constraint=constraint)


def make_scheduler(model, requests=(), prefix_cache=None, **options):
    scheduler = Scheduler(model.transformer, prefix_cache=prefix_cache, **options)
    for request in requests:
        scheduler.add(request)
    return scheduler
