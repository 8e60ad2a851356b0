"""A processor over the tiny tokenizer, and how the tests compare what processors give."""

import functools
import tempfile

import numpy as np
from PIL import Image

from idefics_jax.processing.image_processor import IdeficsImageProcessor
from idefics_jax.processing.processor import IdeficsProcessor
from idefics_jax.processing.tokenizer import IdeficsTokenizer
from tests.reference.processor import IMAGE_SIZE
from tests.support.tiny_tokenizer import save_tiny_tokenizer

RED = Image.new("RGB", (3, 2), "red")
GREEN = Image.new("RGB", (1, 4), "green")
BLUE = Image.new("RGB", (2, 2), "blue")


@functools.cache
def tiny_processor(end_of_utterance: bool = True) -> IdeficsProcessor:
    """An instruct checkpoint's, or a base one's."""
    with tempfile.TemporaryDirectory() as folder:
        save_tiny_tokenizer(folder, end_of_utterance)
        return IdeficsProcessor(IdeficsImageProcessor(image_size=IMAGE_SIZE), IdeficsTokenizer.from_pretrained(folder))


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name], err_msg=name)


def text_of(processor: IdeficsProcessor, inputs: dict[str, np.ndarray]) -> str:
    """The text that the ids of the first row spell, without padding and the spaces that stand for "legacy" ones."""
    ids = inputs["input_ids"][0][inputs["attention_mask"][0] == 1]
    return processor.decode(ids).replace("> ", ">")
