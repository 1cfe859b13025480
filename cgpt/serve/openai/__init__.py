"""OpenAI's endpoints: completions, chat completions, responses, models."""
