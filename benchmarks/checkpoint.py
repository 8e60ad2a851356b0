"""The model that the benchmarks run: the published 9B's architecture at about 460 M parameters, random weights."""

import dataclasses
from pathlib import Path

import jax

from idefics_jax import IdeficsConfig, IdeficsForVisionText2Text, IdeficsImageProcessor, IdeficsProcessor
from idefics_jax.processing.tokenizer import IdeficsTokenizer
from tests.support.tiny_tokenizer import save_tiny_tokenizer

BASE = IdeficsConfig.idefics_9b()
CONFIG = dataclasses.replace(
    BASE,
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=16,
    num_attention_heads=16,
    dtype="float32",
    vision_config=dataclasses.replace(
        BASE.vision_config, embed_dim=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    ),
)


def save_checkpoint(directory: Path) -> Path:
    """Writes the checkpoint, with a tiny tokenizer, unless it is there already."""
    if not (directory / "model.safetensors").exists():
        model = IdeficsForVisionText2Text.from_config(CONFIG, jax.random.key(0))
        save_tiny_tokenizer(directory, end_of_utterance=False)
        tokenizer = IdeficsTokenizer.from_pretrained(directory)
        IdeficsProcessor(IdeficsImageProcessor(), tokenizer).save_pretrained(directory)
        model.save_pretrained(directory)
    return directory
