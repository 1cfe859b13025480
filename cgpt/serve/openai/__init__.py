"""OpenAI's endpoints, each with the pydantic models of what it takes and gives: completions.py, chat.py, responses.py
(with items.py), models.py. What they share: protocol.py, logprobs.py."""
