"""Generation: prefill, then a decode loop that never leaves the device."""

from idefics_jax.generation.context import ConversationCache
from idefics_jax.generation.generate import GenerationOutput, generate

__all__ = ["ConversationCache", "GenerationOutput", "generate"]
