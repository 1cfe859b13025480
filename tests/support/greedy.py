"""Models that take the likeliest token unless a test passes a temperature."""

import cgpt


def load_greedy(name, **options):
    """cgpt.load() without what the checkpoint says of sampling: demo-gpt-oss asks for temperature 1."""
    model = cgpt.load(name, **options)
    model.sampling_defaults = {}
    return model
