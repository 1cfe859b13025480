"""Conversations with gpt-oss in the harmony format: messages, rendering, parsing, tools, grammars."""

# What the published models were trained to be told of themselves.
IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
KNOWLEDGE_CUTOFF = "2024-06"
