"""Prefill and decode against transformers: one process, the same weights and prompt, float32, in turns.

    python -m benchmarks.generation [--checkpoint DIR] [--rounds N]

A decode step is the time of 65 new tokens minus that of 1, over 64. The reference decodes with its own key-value cache
(and computes the images' keys and values anew at each step, as it does for everyone). Tokens are compared as well.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from benchmarks.checkpoint import CONFIG, save_checkpoint
from benchmarks.timing import Pair, seconds, summary
from idefics_jax import IdeficsForVisionText2Text
from tests.reference.generation import random_prompts

NEW = 64
TOKENS = 256  # in the prompt


def measure(directory: Path, rounds: int) -> tuple[dict[str, Pair], float]:
    """Name -> times; and the fraction of the machine's memory bandwidth that decoding reaches."""
    ours = IdeficsForVisionText2Text.from_pretrained(directory)
    reference = transformers.IdeficsForVisionText2Text.from_pretrained(directory, dtype="float32").eval()
    rows, fraction = {}, 0.0
    for images in (1, 8):
        batch = random_prompts(CONFIG, seed=images, rows=1, lengths=(TOKENS, TOKENS), images=(images, images))
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        tensors["pixel_values"] = tensors["pixel_values"].permute(0, 1, 4, 2, 3).contiguous()
        tensors["input_ids"], tensors["attention_mask"] = tensors["input_ids"].long(), tensors["attention_mask"].long()

        def run_ours(new, batch=batch):
            return ours.generate(**batch, max_new_tokens=new, eos_token_id=())

        def run_reference(new, tensors=tensors):
            with torch.no_grad():
                return reference.generate(**tensors, max_new_tokens=new, min_new_tokens=new, do_sample=False)

        banned = {"suppress_tokens": [CONFIG.eos_token_id]}
        same = np.array_equal(ours.generate(**batch, max_new_tokens=16, **banned), run_reference(16).numpy())
        if not same:
            raise SystemExit("The two models give different tokens; the benchmark would mean nothing.")
        label = f"{images} image{'s'[: images > 1]}"
        runs = [partial(run, new) for run in (run_ours, run_reference) for new in (1, NEW + 1)]
        for run in runs:
            run()  # compiles, uncounted
        times = [[seconds(run) for run in runs] for _ in range(rounds)]
        rows[f"prefill, {TOKENS} tokens, {label}"] = summary([t[0] for t in times], [t[2] for t in times])
        rows[f"decode step, {label}"] = summary(
            [(t[1] - t[0]) / NEW for t in times], [(t[3] - t[2]) / NEW for t in times]
        )
        if images == 1:
            fraction = bytes_per_step(ours, images) / rows[f"decode step, {label}"].ours / bandwidth()
    return rows, fraction


def bytes_per_step(model: IdeficsForVisionText2Text, images: int) -> int:
    """What one decode step has to read: the decoder's weights, the head's, and the two caches."""
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves((model.model.decoder, model.head)))
    not_read = sum(
        leaf.nbytes
        for group in model.model.decoder.groups
        for leaf in jax.tree.leaves((group.cross.attention.k, group.cross.attention.v))
    )
    config = model.config
    latents = images * config.perceiver_config.resampler_n_latents
    groups = config.num_hidden_layers // config.cross_layer_interval
    cache = 2 * 4 * config.hidden_size * (config.num_hidden_layers * (TOKENS + NEW // 2) + groups * latents)
    return weights - not_read + cache


def bandwidth() -> float:
    """Bytes per second that XLA reads when it sums an array of 1 GiB: the best of five."""
    array = jnp.ones((1 << 28,), jnp.float32)
    total = jax.jit(jnp.sum)
    total(array).block_until_ready()
    return array.nbytes / min(seconds(lambda: total(array).block_until_ready()) for _ in range(5))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generation", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--checkpoint", type=Path, help="keep the model here (default: a temporary directory)")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as temporary:
        rows, fraction = measure(save_checkpoint(options.checkpoint or Path(temporary)), options.rounds)
    print("| | idefics-jax | transformers | ratio (min to max) |\n|---|---|---|---|")
    for name, times in rows.items():
        print(f"| {name} | {times.ours * 1e3:.1f} ms | {times.reference * 1e3:.1f} ms | {times.ratios} |")
    print(f"\nDecoding with 1 image reads its weights and caches at {fraction:.0%} of the machine's memory bandwidth.")


if __name__ == "__main__":
    main()
