"""Attention and rotary embedding as kernels for TPUs and GPUs."""
