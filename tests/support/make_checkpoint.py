"""Makes a small random checkpoint in the file layout of the published idefics-9b-instruct.

    python -m tests.support.make_checkpoint tiny-model                  with the library's dependencies
    python -m tests.support.make_checkpoint tiny-model --transformers   the same weights, by transformers

Every kind of tensor and every file is there, sharded and in bfloat16; only sizes and vocabulary are scaled down.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from idefics_jax import IdeficsConfig, IdeficsForVisionText2Text
from idefics_jax.checkpoints import hf_names
from idefics_jax.checkpoints.safetensors_io import write_tensors
from tests.support.random_checkpoint import random_tensor
from tests.support.tiny_tokenizer import VOCAB_SIZE, save_tiny_tokenizer

SHARDS = 2
SPECIAL_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CONFIG: dict[str, Any] = {
    "architectures": ["IdeficsForVisionText2Text"],
    "model_type": "idefics",
    "vocab_size": VOCAB_SIZE,
    "additional_vocab_size": 3,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "dropout": 0.0,
    "initializer_range": 0.02,
    "cross_layer_interval": 4,
    "alpha_type": "float",
    "alpha_initializer": "zeros",
    "alphas_initializer_range": 0.0,
    "qk_layer_norms": True,
    "use_resampler": True,
    "max_position_embeddings": 2048,
    "max_sequence_length": 2048,
    "tie_word_embeddings": False,
    "use_cache": True,
    "freeze_lm_head": False,
    "freeze_text_layers": False,
    "freeze_text_module_exceptions": [],
    "freeze_vision_layers": False,
    "freeze_vision_module_exceptions": [],
    "torch_dtype": "bfloat16",
    **SPECIAL_IDS,
    "vision_config": {
        "model_type": "idefics",
        "embed_dim": 80,
        "hidden_act": "gelu",
        "image_size": 224,
        "intermediate_size": 160,
        "num_attention_heads": 4,
        "num_channels": 3,
        "num_hidden_layers": 2,
        "patch_size": 14,
        "layer_norm_eps": 1e-5,
        "attention_dropout": 0.0,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
    },
    "perceiver_config": {
        "model_type": "idefics",
        "use_resampler": True,
        "resampler_depth": 2,
        "resampler_head_dim": 24,
        "resampler_n_heads": 4,
        "resampler_n_latents": 16,
        "qk_layer_norms_perceiver": True,
    },
}
PREPROCESSOR = {
    "image_processor_type": "IdeficsImageProcessor",
    "image_num_channels": 3,
    "image_size": 224,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "processor_class": "IdeficsProcessor",
}
# Changes that leave one layer of each kind, and a second one of the decoder: what tests load that compile a lot.
SMALL: dict[str, Any] = {
    "num_hidden_layers": 2,
    "cross_layer_interval": 1,
    "vision_config": {"num_hidden_layers": 1},
    "perceiver_config": {"resampler_depth": 1},
}
GENERATION = {"_from_model_config": True, **SPECIAL_IDS, "transformers_version": "4.32.0"}


def make_checkpoint(directory: str | Path, transformers: bool = False, changes: dict[str, Any] | None = None) -> Path:
    """Writes the checkpoint's files into `directory`, which is made where missing.

    `changes` to `CONFIG` make another model; nested ones are merged.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if transformers:
        _save_with_transformers(directory)
    else:
        _save(directory, changed(changes or {}))
    _write_json(directory / "preprocessor_config.json", PREPROCESSOR)
    save_tiny_tokenizer(directory)
    return directory


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """`CONFIG` with these changes."""
    return {
        name: value | changes.get(name, {}) if isinstance(value, dict) else changes.get(name, value)
        for name, value in CONFIG.items()
    }


def weights(fields: dict[str, Any] = CONFIG) -> dict[str, np.ndarray]:
    """Every tensor of the checkpoint of such a config by its name, in bfloat16."""
    config = IdeficsConfig.from_dict(fields)
    model = IdeficsForVisionText2Text.abstract(config)
    return {
        str(name): _tensor(str(name), weight.shape).astype(ml_dtypes.bfloat16)
        for weight in hf_names.weights(model, config)
        for name in weight.names.flat
    }


def _tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A weight's values, so large that scores lie far apart and that images matter to them."""
    values = random_tensor(name, shape, std=0.2)
    if name == "lm_head.weight":
        # Words rather than control characters and broken UTF-8; ids 3 to 258 are the tokenizer's bytes.
        values[: 3 + 256] *= 0.1
    return values


def _save(directory: Path, config: dict[str, Any]) -> None:
    tensors = weights(config)
    half = sum(tensor.nbytes for tensor in tensors.values()) / SHARDS
    shards: list[dict[str, np.ndarray]] = [{} for _ in range(SHARDS)]
    size = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: hf_names.by_number(item[0])):
        shards[int(size // half)][name] = tensor
        size += tensor.nbytes
    files = [f"model-{number:05d}-of-{SHARDS:05d}.safetensors" for number in range(1, SHARDS + 1)]
    for file, shard in zip(files, shards, strict=True):
        kinds = {name: (tensor.dtype, tensor.shape) for name, tensor in shard.items()}
        write_tensors(directory / file, kinds, shard.values())
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    _write_json(directory / "model.safetensors.index.json", index)
    _write_json(directory / "config.json", config)
    _write_json(directory / "generation_config.json", GENERATION)


def _save_with_transformers(directory: Path) -> None:
    import torch
    from transformers import IdeficsConfig, IdeficsForVisionText2Text

    tensors = {name: torch.from_numpy(value.astype(np.float32)).bfloat16() for name, value in weights().items()}
    model = IdeficsForVisionText2Text(IdeficsConfig.from_dict(CONFIG)).bfloat16()
    model.load_state_dict(tensors, strict=True)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    model.save_pretrained(directory, max_shard_size=f"{total // SHARDS // 1000 + 50}KB")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.make_checkpoint", description=(__doc__ or "").strip().splitlines()[0]
    )
    parser.add_argument("directory", type=Path, help="made where missing")
    parser.add_argument("--transformers", action="store_true", help="write it with transformers (needs torch)")
    options = parser.parse_args()
    make_checkpoint(options.directory, options.transformers)


if __name__ == "__main__":
    main()
