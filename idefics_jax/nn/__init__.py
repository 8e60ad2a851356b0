"""Modules of the model: layers, attention, vision tower, resampler and decoder."""
