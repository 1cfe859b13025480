"""The two architectures, side by side, and what is derived from them: bytes, FLOPs, forecasts, inspection."""
