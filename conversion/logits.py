"""`verify --logits`: two checkpoints answer the same prompt about the same image, one after the other."""

import gc
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from idefics_jax import IdeficsForVisionText2Text, IdeficsProcessor
from idefics_jax.generation_config import DEFAULTS, GenerationConfig

from .source import Checkpoint

NEW_TOKENS = 16
AGREE = 1e-3  # largest difference of logits, relative to the largest logit, that rounding in float32 explains


class Answer(NamedTuple):
    """What a checkpoint made of the prompt: logits `[tokens, vocabulary]` in float32, greedy tokens, and by what."""

    logits: np.ndarray
    tokens: list[int]
    program: str


def compare(one: Checkpoint, other: Checkpoint, image: str, prompt: str) -> int:
    """Prints the largest difference of logits and the first differing token; status 1 if they are not the same.

    Raises:
        OSError, ValueError: the image, or a checkpoint's processor, cannot be read.
    """
    processor = IdeficsProcessor.from_pretrained(one.directory)
    inputs = processor(prompt, images=[image])
    a, b = answer(one, inputs), answer(other, inputs)
    print(f"logits: {one.directory} by {a.program}, {other.directory} by {b.program}")
    distance, scale = float(np.abs(a.logits - b.logits).max()), float(np.abs(a.logits).max())
    print(f"logits: at most {distance:.3g} apart, where the largest is {scale:.3g}")
    differing = next((n for n, (x, y) in enumerate(zip(a.tokens, b.tokens, strict=True)) if x != y), None)
    if differing is None:
        print(f"greedy tokens: all {len(a.tokens)} are the same")
    else:
        x, y = (repr(processor.decode([tokens[differing]])) for tokens in (a.tokens, b.tokens))
        print(f"greedy tokens: the first to differ is number {differing + 1}, {x} and {y}")
    return int(differing is not None or not distance <= AGREE * scale)


def answer(checkpoint: Checkpoint, inputs: dict[str, np.ndarray]) -> Answer:
    """The checkpoint's answer, by PyTorch where that can load it; the model's memory is free again afterwards."""
    local, installed = isinstance(checkpoint.directory, Path), find_spec("torch") and find_spec("transformers")
    run = by_torch if checkpoint.format != "orbax" and local and installed else by_jax
    result = run(checkpoint, inputs)
    gc.collect()
    return result


def by_jax(checkpoint: Checkpoint, inputs: dict[str, np.ndarray]) -> Answer:
    """Our own model's answer."""
    model = IdeficsForVisionText2Text.from_pretrained(checkpoint.directory, dtype="float32")
    logits = np.asarray(model(**inputs).logits[0])
    plain = GenerationConfig(**DEFAULTS)
    tokens = model.generate(**inputs, generation_config=plain, max_new_tokens=NEW_TOKENS, eos_token_id=())
    return Answer(logits, tokens[0, -NEW_TOKENS:].tolist(), "idefics-jax")


def by_torch(checkpoint: Checkpoint, inputs: dict[str, np.ndarray]) -> Answer:
    """The reference's answer."""
    import torch  # pyright: ignore[reportMissingImports]  # only where `verify --logits` meets a Hugging Face source
    from transformers import IdeficsForVisionText2Text as Reference  # pyright: ignore[reportMissingImports]

    model: Any = Reference.from_pretrained(str(checkpoint.directory), dtype=torch.float32).eval()
    tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in inputs.items()}
    tensors["pixel_values"] = tensors["pixel_values"].permute(0, 1, 4, 2, 3).contiguous()
    tensors["input_ids"] = tensors["input_ids"].long()
    # Neither side stops at an end-of-sequence token, so that as many tokens are compared as can be.
    model.generation_config = type(model.generation_config)()
    with torch.no_grad():
        logits = model(**tensors).logits[0].numpy()
        tokens = model.generate(**tensors, max_new_tokens=NEW_TOKENS, do_sample=False)
    return Answer(logits, tokens[0, -NEW_TOKENS:].tolist(), "PyTorch")
