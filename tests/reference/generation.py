"""What `transformers` generates from a small random checkpoint, and the checkpoint itself, made without torch."""

import functools
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from idefics_jax import IdeficsConfig, IdeficsForVisionText2Text, IdeficsPerceiverConfig, IdeficsVisionConfig

EOS = [2, 11, 42, 63]  # several, so that random answers end
ROWS, NEW_TOKENS = 4, 12
RULES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "rules": {
        "repetition_penalty": 1.3,
        "min_new_tokens": 6,
        "suppress_tokens": [96, 97, 98],
        "bad_words_ids": [[5], [17, 30], [8, 9, 10], [2]],
    },
    "beams": {"num_beams": 3},
    "long beams": {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "num_return_sequences": 2},
    "short beams": {"num_beams": 2, "length_penalty": -1.0, "early_stopping": "never", "num_return_sequences": 2},
    "ruled beams": {"num_beams": 3, "bad_words_ids": [[5], [17, 30]], "min_new_tokens": 4, "repetition_penalty": 1.2},
}


#: How many batches are recorded: more than 100 prompts each of plain greedy and beam search.
BATCHES = {name: 26 if name in ("greedy", "beams") else 6 for name in RULES}


def config(**changes: Any) -> IdeficsConfig:
    """Two groups of one layer, resampler, all norms, three additional tokens: what compiles fast."""
    values = {
        "vocab_size": 96,
        "additional_vocab_size": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "cross_layer_interval": 1,
        "qk_layer_norms": True,
        "use_resampler": True,
        "max_position_embeddings": 256,
        "dtype": "float32",
        "vision_config": IdeficsVisionConfig(
            embed_dim=24, image_size=28, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
        ),
        "perceiver_config": IdeficsPerceiverConfig(
            resampler_n_latents=4,
            resampler_depth=1,
            resampler_n_heads=2,
            resampler_head_dim=8,
            qk_layer_norms_perceiver=True,
        ),
    }
    return IdeficsConfig(**{**values, **changes})


def random_model(
    config: IdeficsConfig, seed: int = 0, stacked: bool = False, mesh: Mesh | None = None
) -> IdeficsForVisionText2Text:
    """Weights from numpy, the same everywhere, and large: scores lie far apart, and images matter."""
    random = np.random.default_rng(seed)

    def leaf(path: Any, shape: Any) -> jax.Array:
        name = jax.tree_util.keystr(path)
        values = random.standard_normal(shape.shape)
        if "alpha" in name:
            values = 1 + 0.2 * values
        elif "norm" in name and "scale" in name:
            values = 1 + 0.1 * values
        elif "head" in name or "embedding" in name:
            values = 0.6 * values
        else:
            values = 0.25 * values
        return jax.device_put(values.astype(np.float32), shape.sharding)

    shapes = IdeficsForVisionText2Text.abstract(config, stacked=stacked, mesh=mesh)
    return jax.tree_util.tree_map_with_path(leaf, shapes)


@functools.cache
def shared_model() -> IdeficsForVisionText2Text:
    """The model of `config()`, one for all tests of a process: a smaller batch runs with what a larger one compiled."""
    return random_model(config())


def random_prompts(
    config: IdeficsConfig, seed: int, rows: int, lengths: tuple[int, int] = (3, 28), images: tuple[int, int] = (0, 3)
) -> dict[str, np.ndarray]:
    """A left-padded batch of mixed lengths and image counts; tokens see the last image before them."""
    random = np.random.default_rng(seed)
    size = config.vision_config.image_size
    counts = random.integers(images[0], images[1] + 1, rows)
    sizes = np.maximum(random.integers(lengths[0], lengths[1] + 1, rows), 2 * counts + 1)
    width, most = sizes.max(), max(1, counts.max())
    batch = {
        "input_ids": np.zeros((rows, width), np.int32),
        "attention_mask": np.zeros((rows, width), np.int32),
        "pixel_values": np.zeros((rows, most, size, size, 3), np.float32),
        "image_attention_mask": np.zeros((rows, width, most), np.int32),
    }
    for row, (count, length) in enumerate(zip(counts, sizes, strict=True)):
        batch["input_ids"][row, -length:] = random.integers(3, config.vocab_size, length)
        batch["attention_mask"][row, -length:] = 1
        batch["pixel_values"][row, :count] = random.standard_normal((count, size, size, 3))
        starts = np.sort(random.choice(length, count, replace=False))
        for image, start in enumerate(starts):
            batch["input_ids"][row, width - length + start] = config.vocab_size + 1
            end = starts[image + 1] if image + 1 < count else length
            batch["image_attention_mask"][row, width - length + start : width - length + end, image] = 1
    return batch


def rows_alone(batch: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """Each prompt of a batch by itself, without padding."""
    for row, real in enumerate(batch["attention_mask"] != 0):
        yield {
            name: array[row : row + 1] if name == "pixel_values" else array[row : row + 1, real]
            for name, array in batch.items()
        }


def reference_model(model: IdeficsForVisionText2Text) -> Any:
    """The PyTorch model with the same weights, by way of a checkpoint."""
    import transformers

    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        reference = transformers.IdeficsForVisionText2Text.from_pretrained(directory, dtype="float32")
    return reference.eval()


def torch_inputs(batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """A batch as the PyTorch model takes it."""
    import torch

    inputs = {name: torch.from_numpy(array) for name, array in batch.items()}
    for name in ("input_ids", "attention_mask"):
        if name in inputs:
            inputs[name] = inputs[name].long()
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].permute(0, 1, 4, 2, 3).contiguous()
    return inputs


def reference_generate(reference: Any, batch: dict[str, np.ndarray], **kwargs: Any) -> np.ndarray:
    """`transformers`' tokens."""
    return reference.generate(**torch_inputs(batch), **kwargs).numpy().astype(np.int32)


SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0.7},
    {"top_k": 1},
    {"top_k": 7, "temperature": 1.7},
    {"top_p": 0.4},
    {"top_p": 0.9, "top_k": 20},
    {"min_p": 0.1},
    {"temperature": 0.5, "top_k": 30, "top_p": 0.95, "min_p": 0.02},
    {"repetition_penalty": 1.5},
    {"repetition_penalty": 0.8, "bad_words_ids": [[4], [2], [7, 8], [11, 12, 13]], "min_new_tokens": 3},
    {"suppress_tokens": [0, 1, 98], "bad_words_ids": [[90, 91, 92, 93, 94, 95]], "top_k": 5},
]
ROW_OF_TOKENS = [1, 5, 5, 6, 7, 90, 91, 92, 93, 94, 11, 12]


def random_scores(
    seed: int, rules: dict[str, Any], rows: int = 3, vocabulary: int = 99
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens so far, some of which begin a bad word, and scores, some of which are equal.

    Not so for top-p: there torch sorts, and which of two equal scores it puts first depends on the machine.
    """
    random = np.random.default_rng(seed)
    tokens = random.integers(0, vocabulary, (rows, len(ROW_OF_TOKENS)), dtype=np.int32)
    tokens[0], tokens[1] = ROW_OF_TOKENS, np.roll(ROW_OF_TOKENS, 2 + 5 * seed)
    digits = 6 if "top_p" in rules else 1
    return tokens, np.round(4 * random.standard_normal((rows, vocabulary)), digits).astype(np.float32)


def reference_scores(tokens: np.ndarray, scores: np.ndarray, new_tokens: int, **rules: Any) -> np.ndarray:
    """What `transformers`' logits processors make of `scores`, `new_tokens` after the prompt."""
    import torch
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

    tiny = GPT2LMHeadModel(GPT2Config(vocab_size=scores.shape[1], n_embd=4, n_layer=1, n_head=1, n_positions=4))
    config = GenerationConfig(do_sample=True, **{"top_k": 0, "eos_token_id": EOS, **rules})
    config._eos_token_tensor = torch.tensor(EOS)
    config.num_beams = 1
    processors = tiny._get_logits_processor(config, input_ids_seq_length=tokens.shape[1] - new_tokens, device="cpu")
    return processors(torch.from_numpy(tokens).long(), torch.from_numpy(scores)).numpy()


def record() -> dict[str, np.ndarray]:
    model = random_model(config())
    reference = reference_model(model)
    answers = {
        f"{name} {seed}": reference_generate(
            reference,
            random_prompts(model.config, seed, ROWS),
            max_new_tokens=NEW_TOKENS,
            eos_token_id=EOS,
            do_sample=False,
            **rules,
        )
        for name, rules in RULES.items()
        for seed in range(BATCHES[name])
    }
    scores = {
        f"scores {index}": reference_scores(*random_scores(0, rules), 2, **rules)
        for index, rules in enumerate(SAMPLING)
    }
    return answers | scores
