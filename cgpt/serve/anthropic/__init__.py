"""Anthropic's endpoints over the same turn: protocol.py has what a request is made of, messages.py answers it."""
