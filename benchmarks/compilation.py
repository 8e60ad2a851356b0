"""Size and compile time of the forward pass by depth: stacked layers are scanned, so neither grows; listed ones do.

python -m benchmarks.compilation
"""

import argparse
import dataclasses
import time

import jax
import jax.numpy as jnp

from idefics_jax import IdeficsConfig, IdeficsForVisionText2Text


def measure(depth: int, stacked: bool) -> tuple[int, float, float]:
    """Lines of StableHLO, seconds to trace and lower, seconds to compile."""
    config = dataclasses.replace(IdeficsConfig.tiny(), num_hidden_layers=depth, cross_layer_interval=4)
    model = IdeficsForVisionText2Text.abstract(config, stacked=stacked)
    size = config.vision_config.image_size
    batch = {
        "input_ids": jax.ShapeDtypeStruct((1, 32), jnp.int32),
        "pixel_values": jax.ShapeDtypeStruct((1, 1, size, size, 3), jnp.float32),
        "image_attention_mask": jax.ShapeDtypeStruct((1, 32, 1), jnp.int32),
    }
    start = time.perf_counter()
    lowered = jax.jit(lambda model, batch: model(**batch)).lower(model, batch)
    traced = time.perf_counter()
    lowered.compile()
    return len(lowered.as_text().splitlines()), traced - start, time.perf_counter() - traced


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.compilation", description=__doc__).parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    measure(4, True)  # uncounted: what JAX does once
    print("| decoder layers | form | lines of StableHLO | traced in | compiled in |\n|---|---|---|---|---|")
    for stacked in (True, False):
        for depth in (4, 40):
            lines, traced, compiled = measure(depth, stacked)
            form = "stacked" if stacked else "listed"
            print(f"| {depth} | {form} | {lines:,} | {traced:.2f} s | {compiled:.1f} s |")


if __name__ == "__main__":
    main()
