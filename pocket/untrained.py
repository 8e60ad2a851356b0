"""The pocket model before training: IDEFICS' architecture, a few million times fewer multiplications."""

from collections.abc import Iterable
from pathlib import Path

import jax

from idefics_jax import IdeficsConfig, IdeficsForVisionText2Text, IdeficsImageProcessor, IdeficsProcessor
from idefics_jax.config import IdeficsPerceiverConfig, IdeficsVisionConfig
from pocket.scenes import SIDE
from pocket.words import ADDED, make_tokenizer

SEED = 8


def write_model(folder: Path, texts: Iterable[str]) -> None:
    """A checkpoint of random weights whose tokenizer knows the words of `texts`.

    Weights begin larger than in the published models, whose deviation of 0.02 is for a width of thousands.
    """
    # Pixels lie around grey: an offset near bright backgrounds makes grey and black differ in length alone.
    images = IdeficsImageProcessor(image_size=SIDE, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))
    processor = IdeficsProcessor(images, make_tokenizer(texts))
    config = IdeficsConfig(
        vocab_size=len(processor.tokenizer) - len(ADDED),
        additional_vocab_size=len(ADDED),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        cross_layer_interval=2,
        alpha_initializer="ones",
        qk_layer_norms=True,
        use_resampler=True,
        initializer_range=0.08,
        dtype="float32",
        freeze_text_module_exceptions=("Linear",),  # the tower alone stays as `pocket.tower` made it
        vision_config=IdeficsVisionConfig(
            embed_dim=144,
            image_size=SIDE,
            patch_size=8,
            intermediate_size=576,
            num_hidden_layers=6,
            num_attention_heads=4,
            initializer_range=0.08,
        ),
        perceiver_config=IdeficsPerceiverConfig(
            resampler_n_latents=12,
            resampler_depth=1,
            resampler_n_heads=4,
            resampler_head_dim=36,
            qk_layer_norms_perceiver=True,
        ),
    )
    IdeficsForVisionText2Text.from_config(config, jax.random.key(SEED)).save_pretrained(folder)
    processor.save_pretrained(folder)
