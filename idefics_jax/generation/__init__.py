"""Generation: prefill, then a decode loop that never leaves the device."""

from idefics_jax.generation.context import Context
from idefics_jax.generation.generate import GenerationOutput, generate

__all__ = ["Context", "GenerationOutput", "generate"]
