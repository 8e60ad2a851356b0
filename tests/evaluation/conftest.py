"""Small random models with a tokenizer, and small images."""

import json

import numpy as np
import pytest
from PIL import Image

from idefics_jax import IdeficsForVisionText2Text, IdeficsProcessor
from tests.support.make_checkpoint import PREPROCESSOR
from tests.support.random_checkpoint import save_random_checkpoint
from tests.support.tiny_tokenizer import VOCAB_SIZE, save_tiny_tokenizer

IMAGES = 12
#: Two groups of one layer, and one layer of the others: what compiles fast.
SMALL = {
    "vocab_size": VOCAB_SIZE,
    "num_hidden_layers": 2,
    "cross_layer_interval": 1,
    "vision_config": {"num_hidden_layers": 1},
    "perceiver_config": {"resampler_depth": 1},
}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Gives the checkpoint with and the one without the instruct token."""
    made = {}

    def checkpoint(instruct):
        if instruct not in made:
            folder = tmp_path_factory.mktemp("evaluation") / ("instruct" if instruct else "base")
            tokens = {"additional_vocab_size": 3, "eos_token_id": 2, "pad_token_id": 0}
            save_random_checkpoint(folder, SMALL | tokens, std=0.3)
            save_tiny_tokenizer(folder)
            if not instruct:  # another token in its place: both have the same sizes, and share their programs
                for path in folder.glob("*token*.json"):
                    text = path.read_text(encoding="utf-8").replace("<end_of_utterance>", "<other>")
                    path.write_text(text, encoding="utf-8")
            (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR | {"image_size": 28}))
            made[instruct] = folder
        return made[instruct]

    return checkpoint


@pytest.fixture(scope="session")
def base(checkpoints):
    return checkpoints(False)


@pytest.fixture(scope="session")
def model(base):
    return IdeficsForVisionText2Text.from_pretrained(base, dtype="float32")


@pytest.fixture(scope="session")
def processor(base):
    return IdeficsProcessor.from_pretrained(base)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of small images of noise, `0.png` to `11.png`."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(IMAGES):
        small = Image.fromarray(random.integers(0, 256, (5, 6, 3), np.uint8))
        small.resize((40, 48)).save(folder / f"{number}.png")
    return folder
