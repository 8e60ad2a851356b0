"""Small checkpoints with the same random weights wherever they are made, with torch or without."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from idefics_jax import IdeficsConfig, IdeficsForVisionText2Text
from idefics_jax.checkpoints import hf_names

BASE: dict[str, Any] = {
    "model_type": "idefics",
    "vocab_size": 64,
    "additional_vocab_size": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "cross_layer_interval": 2,
    "qk_layer_norms": True,
    "use_resampler": True,
    "alpha_type": "float",
    "max_position_embeddings": 2048,
    "dtype": "float32",
    "vision_config": {
        "embed_dim": 24,
        "image_size": 28,
        "patch_size": 7,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 40,
    },
    "perceiver_config": {
        "use_resampler": True,
        "resampler_n_latents": 5,
        "resampler_depth": 2,
        "resampler_n_heads": 2,
        "resampler_head_dim": 6,
        "qk_layer_norms_perceiver": True,
    },
}


def random_tensor(name: str, shape: tuple[int, ...], std: float = 0.1) -> np.ndarray:
    """A weight's float32 values, from its name: matrices around 0, norms around 1, gates well open."""
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    if "norm" in name or ".ln." in name:
        return 0.2 * values + (1 if name.endswith("weight") else 0)
    return values * (0.7 if "alpha" in name else std)


def save_random_checkpoint(
    directory: Path, changes: dict[str, Any] | None = None, std: float = 0.1, drop: tuple[str, ...] = ()
) -> Path:
    """Writes `config.json` (`BASE` with changes, nested ones merged) and the weights it asks for."""
    from safetensors.numpy import save_file  # not needed for the README's checkpoint, which is made without test tools

    config = {**BASE, **(changes or {})}
    for part in ("vision_config", "perceiver_config"):
        config[part] = {**BASE[part], **(changes or {}).get(part, {})}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    ours = IdeficsConfig.from_dict(config)
    tensors = {
        str(name): random_tensor(str(name), weight.shape, std)
        for weight in hf_names.weights(IdeficsForVisionText2Text.abstract(ours), ours)
        for name in weight.names.flat
        if name not in drop
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
