"""Text from a model: sampling, requests, the scheduler of continuous batching, prefix reuse, the engine."""
