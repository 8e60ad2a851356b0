"""The main job by transformers: photographs and prompts through its processor, model and `generate`."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.support.make_checkpoint import make_checkpoint

PHOTOS = ["chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg", "hubble_deep_field.jpg", "retina.jpg"]
PHOTOS += ["camera.png", "logo.png", "no_time_for_that_tiny.gif"]  # grey, transparent, palette
NEW_TOKENS = 24
RULES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5},
    "ruled": {"repetition_penalty": 1.3, "bad_words_ids": [[512], [513]], "eos_token_id": [2, 514]},
}


def photo(name: str) -> Image.Image:
    """One of the photographs that scikit-image ships."""
    import skimage

    with Image.open(Path(skimage.__file__).parent / "data" / name) as image:
        return image.copy()


def batches() -> list[list[list[str | Image.Image]]]:
    """Two batches of prompts with no image to three, of mixed lengths, in the forms that people write."""
    end = "<end_of_utterance>"
    two_dogs = [
        "User:",
        photo("chelsea.png"),
        f"Describe this image.{end}\nAssistant: An image of a cat.{end}\nUser:",
        photo("coffee.png"),
        f"Describe this image.{end}\nAssistant:",
    ]
    return [
        [
            two_dogs,
            [f"User: What is the best answer?{end}\nAssistant:"],
            ["User:", photo("astronaut.png"), photo("rocket.jpg"), "What differs from the first to the last?", end],
            [photo("hubble_deep_field.jpg"), "Caption:"],
        ],
        [
            ["Question: How many people are in the photo?", photo("astronaut.png"), "Answer:"],
            ["User: Who is that?", photo("camera.png"), photo("logo.png"), photo("no_time_for_that_tiny.gif"), end],
            ["Before the image.", photo("retina.jpg")],
            ["User: What differs from", photo("coffee.png"), f"to the last?{end}\nAssistant:"],
        ],
    ]


def random_batch(seed: int) -> list[list[str | Image.Image]]:
    """A batch of one to four prompts of up to three photographs, each cropped, and texts in any order."""
    random = np.random.default_rng(seed)
    texts = ["User:", "What is in this image?", "Describe it.<end_of_utterance>\nAssistant:", "A red chair, two dogs."]

    def crop() -> Image.Image:
        image = photo(str(random.choice(PHOTOS[:6])))
        left, top = random.integers(0, image.width // 2), random.integers(0, image.height // 2)
        return image.crop((left, top, left + random.integers(20, 200), top + random.integers(20, 200)))

    def prompt() -> list[str | Image.Image]:
        items = [crop() for _ in range(random.integers(0, 4))]
        items += [str(text) for text in random.choice(texts, random.integers(1, 4))]
        return [items[index] for index in random.permutation(len(items))] + ["\nAssistant:"]

    return [prompt() for _ in range(random.integers(1, 5))]


def reference(directory: Path) -> tuple[Any, Any]:
    """Transformers' processor and float32 model of a checkpoint, images prepared by its Pillow code."""
    from transformers import AutoTokenizer, IdeficsForVisionText2Text, IdeficsProcessor
    from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil

    tokenizer = AutoTokenizer.from_pretrained(directory)
    processor = IdeficsProcessor(IdeficsImageProcessorPil.from_pretrained(directory), tokenizer)
    return processor, IdeficsForVisionText2Text.from_pretrained(directory, dtype="float32").eval()


def reference_inputs(processor: Any, batch: list[list[str | Image.Image]]) -> dict[str, Any]:
    """The inputs of transformers' model."""
    return processor(
        text=batch,
        return_tensors="pt",
        add_special_tokens=False,
        padding_side="left",
        add_end_of_utterance_token=True,  # transformers 5 no longer finds out by itself that the tokenizer has it
    )


def reference_answers(processor: Any, model: Any, inputs: dict[str, Any], **rules: Any) -> tuple[np.ndarray, list[str]]:
    """Tokens and text of transformers' answers."""
    import torch

    with torch.no_grad():
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS, **rules)
    return tokens.numpy().astype(np.int32), processor.batch_decode(tokens, skip_special_tokens=True)


def sparse(pixels: np.ndarray) -> np.ndarray:
    """A pixel in a thousand or so of `[b, i, height, width, 3]`, from all over the image."""
    return pixels[:, :, 5::37, 3::41]


def record() -> dict[str, np.ndarray]:
    arrays = {}
    with tempfile.TemporaryDirectory() as directory:
        processor, model = reference(make_checkpoint(directory))
    for number, batch in enumerate(batches()):
        inputs = reference_inputs(processor, batch)
        arrays |= {
            f"{name} {number}": inputs[name].numpy().astype(np.int32)
            for name in ("input_ids", "attention_mask", "image_attention_mask")
        }
        arrays[f"pixel_values {number}"] = sparse(inputs["pixel_values"].permute(0, 1, 3, 4, 2).numpy())
        for name, rules in RULES.items():
            tokens, texts = reference_answers(processor, model, inputs, **rules)
            arrays |= {f"{name} {number}": tokens, f"{name} texts {number}": np.array(texts)}
    return arrays
