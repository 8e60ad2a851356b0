"""What transformers' IDEFICS computes for small models with every architectural switch thrown."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.random_checkpoint import save_random_checkpoint

#: Name -> changes of the base configuration. The base has everything that the published checkpoints have.
CONFIGS: dict[str, dict[str, Any]] = {
    "published": {},
    "no resampler": {"use_resampler": False},
    "no q/k norms": {"qk_layer_norms": False, "perceiver_config": {"qk_layer_norms_perceiver": False}},
    "vector alphas": {"alpha_type": "vector"},
    "interval 1": {"cross_layer_interval": 1},
    "interval 4": {"cross_layer_interval": 4},
    "tied": {"tie_word_embeddings": True},
    "no additional vocabulary": {"additional_vocab_size": 0},
    "rope and eps": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rms_norm_eps": 1e-2},
    "tanh gelu": {"vision_config": {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-2}},
}
#: Switches that are thrown alone above, so that a fault is found by its name; the default run throws them at once.
ALONE = ("vector alphas", "interval 1", "tied", "no additional vocabulary", "rope and eps", "tanh gelu")
CONFIGS["at once"] = {name: value for alone in ALONE for name, value in CONFIGS[alone].items()}


def inputs(case: str) -> dict[str, np.ndarray]:
    """A batch for a case, channels last: one row padded left, one right, one not; the images come late."""
    rng = np.random.default_rng(7)
    height, width = (42, 35) if case == "interpolated" else (28, 28)
    attention_mask = np.ones((3, 10), np.int32)
    attention_mask[0, :4] = 0
    attention_mask[1, 8:] = 0
    image_attention_mask = np.zeros((3, 10, 2), np.int32)
    image_attention_mask[:, 4:7, 0] = 1
    image_attention_mask[:, 7:, 1] = 1
    image_attention_mask[2, 9] = 0
    if case == "no images":
        image_attention_mask[:] = 0
    vocabulary = 64 if case in ("no additional vocabulary", "at once") else 67
    return {
        "input_ids": rng.integers(3, vocabulary, (3, 10), np.int32) * attention_mask,
        "attention_mask": attention_mask,
        "pixel_values": rng.standard_normal((3, 2, height, width, 3), np.float32),
        "image_attention_mask": image_attention_mask,
    }


CASES = [*CONFIGS, "interpolated", "no images"]
IMAGE_STATES = ("published", "no resampler", "tanh gelu", "at once", "interpolated")


def checkpoint(case: str, folder: Path) -> Path:
    """The checkpoint of a case, made in `folder`."""
    return save_random_checkpoint(folder / case.replace("/", ""), CONFIGS.get(case))


def run_torch(case: str, folder: Path, dtype: str = "float32"):
    """The reference model of a case, its inputs as tensors, and its output."""
    import torch
    from transformers import IdeficsForVisionText2Text

    model, report = IdeficsForVisionText2Text.from_pretrained(
        checkpoint(case, folder), attn_implementation="eager", dtype=dtype, output_loading_info=True
    )
    assert not report["missing_keys"] | report["unexpected_keys"], report
    batch = {name: torch.tensor(value) for name, value in inputs(case).items()}
    batch["pixel_values"] = batch["pixel_values"].permute(0, 1, 4, 2, 3)
    options = {"interpolate_pos_encoding": case == "interpolated", "output_hidden_states": True}
    with torch.no_grad():
        return model.eval(), batch, model.eval()(**batch, **options, output_attentions=True)


def reference_loss(logits, batch: dict[str, Any]) -> float:
    """The loss as IDEFICS was trained: targets that are padding do not count.

    It is computed from the reference's logits, since its `labels` forgets both that and the additional tokens.
    """
    import torch

    counted = batch["attention_mask"][:, 1:].bool()
    targets = batch["input_ids"][:, 1:].long()
    return float(torch.nn.functional.cross_entropy(logits[:, :-1][counted].float(), targets[counted]))


def record() -> dict[str, np.ndarray]:
    arrays = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            _, batch, output = run_torch(case, Path(folder))
            arrays[f"{case}: logits"] = output.logits.numpy()
            arrays[f"{case}: loss"] = np.float32(reference_loss(output.logits, batch))
            if case in IMAGE_STATES:
                arrays[f"{case}: image_hidden_states"] = output.image_hidden_states.numpy()[:1]
            if case == "published":
                for layer, (state, weights) in enumerate(zip(output.hidden_states[1:], output.attentions, strict=True)):
                    arrays[f"{case}: hidden_states {layer}"] = state.numpy()
                    arrays[f"{case}: attentions {layer}"] = weights.numpy()
        _, batch, exact = run_torch("published", Path(folder))
        rounded = run_torch("published", Path(folder), "bfloat16")[2]
        real = batch["attention_mask"].bool()
        error = (rounded.logits.float() - exact.logits)[real].pow(2).mean() / exact.logits[real].pow(2).mean()
        arrays["published: bfloat16 error"] = error.sqrt().numpy()
    return arrays
