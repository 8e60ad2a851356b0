"""Speed and memory, side by side with transformers on the same machine, weights and dtype, in one run."""
