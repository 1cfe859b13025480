"""Reading checkpoints as published: config.json in every dialect, safetensors files, and matrices for the kernels."""
