"""Conversations with gpt-oss in the harmony format: messages, rendering, parsing, tools, grammars."""
