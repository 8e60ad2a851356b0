"""A training step against PyTorch's: the same model, batch, loss and AdamW, float32, in one run and in turns.

    python -m benchmarks.training [--rounds N]

The model is the published architecture at about 100 M parameters. A step is the loss and its gradient, clipping, AdamW
with the authors' weight decay; of `full`, where everything trains, and `idefics`, where only what IDEFICS added to its
backbones does. Each side has a process of its own; peak memory is that of its resident set.

transformers runs in eager mode with scaled-dot-product attention and fused AdamW on as many threads. What differs: ours
makes pixels from bytes inside the step and computes the head in chunks; PyTorch has its pixels ready. Both see the same
loss, which is checked.
"""

import argparse
import dataclasses
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.timing import Pair, summary
from idefics_jax import IdeficsConfig, IdeficsForVisionText2Text, IdeficsImageProcessor
from train.config import DataConfig, OptimizerConfig, TrainConfig
from train.optimizer import make_optimizer
from train.starting import load, model_config
from train.step import Batch, Objective, init_state, make_train_step

BASE = IdeficsConfig.idefics_9b()
MODEL = dataclasses.replace(
    BASE,
    vocab_size=16000,
    hidden_size=512,
    intermediate_size=1376,
    num_hidden_layers=12,
    num_attention_heads=8,
    alpha_initializer="ones",
    dtype="float32",
    vision_config=dataclasses.replace(
        BASE.vision_config, embed_dim=512, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=8
    ),
    perceiver_config=dataclasses.replace(BASE.perceiver_config, resampler_depth=3, resampler_n_heads=8),
)
IMAGE_TOKEN = MODEL.vocab_size + 1
ROWS, TOKENS, IMAGES = 4, 256, 2
PRESETS = ("full", "idefics")
ADAMW = OptimizerConfig(learning_rate=1e-5, schedule="constant", weight_decay=0.1)
REST = 0.5  # seconds between steps: OpenMP's threads go on spinning for a while

Step = Callable[[], float]


def make_batch() -> Batch:
    """Rows of one document each, of unlike lengths, with an image at the start and one in the middle."""
    random = np.random.default_rng(0)
    lengths = np.linspace(TOKENS, TOKENS * 3 // 4, ROWS).astype(int)
    real = np.arange(TOKENS) < lengths[:, None]
    ids = np.where(real, random.integers(3, MODEL.vocab_size, (ROWS, TOKENS)), 0).astype(np.int32)
    ids[:, [1, TOKENS // 2]] = IMAGE_TOKEN
    last = np.cumsum(ids == IMAGE_TOKEN, axis=1)
    size = MODEL.vision_config.image_size
    return Batch(
        input_ids=ids[None],
        labels=np.where(real, ids, -100)[None],
        segment_ids=real.astype(np.int32)[None],
        position_ids=np.where(real, np.arange(TOKENS), 1).astype(np.int32)[None],
        image_attention_mask=(real[..., None] & (last[..., None] == np.arange(1, IMAGES + 1))).astype(np.int8)[None],
        pixel_values=random.integers(0, 256, (1, ROWS, IMAGES, size, size, 3), np.uint8),
    )


def our_step(directory: Path, preset: str, **changes) -> Step:
    """A function that does a step of ours and returns its loss."""
    config = TrainConfig(
        out="",
        model=str(directory),
        trainable=preset,
        dtype="float32",
        frozen_dtype="float32",
        remat="none",
        data=DataConfig(sequence_length=TOKENS, max_images=IMAGES),
        optimizer=ADAMW,
    )
    config = dataclasses.replace(config, **changes)
    template, params, frozen = load(config, model_config(config), None)
    optimizer = make_optimizer(ADAMW, config.steps)
    objective = Objective(template, config, IdeficsImageProcessor(), IMAGE_TOKEN)
    state = jax.jit(lambda params: init_state(params, optimizer, False))(params)
    compiled = jax.jit(make_train_step(objective, optimizer), donate_argnums=0)
    batch = jax.device_put(make_batch())

    def step() -> float:
        nonlocal state
        state, metrics = compiled(state, frozen, batch)
        return float(jax.block_until_ready(metrics)["loss"])

    return step


def torch_step(directory: Path, preset: str) -> Step:
    """A function that does a step of PyTorch's and returns its loss."""
    import torch
    from transformers import IdeficsForVisionText2Text as Reference

    model = Reference.from_pretrained(directory, dtype="float32", attn_implementation="sdpa").train()
    if preset == "idefics":
        model.model.freeze_text_layers()
        model.model.freeze_vision_layers()
        model.model.embed_tokens.weight.requires_grad_(False)
        model.lm_head.weight.requires_grad_(False)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    plain = ("bias", "alpha", "norm", ".ln.", "perceiver_resampler")
    spared = {name for name in trained if any(part in name for part in plain)}
    groups = [
        {"params": [trained[name] for name in spared], "weight_decay": 0.0},
        {"params": [trained[name] for name in trained.keys() - spared], "weight_decay": ADAMW.weight_decay},
    ]
    optimizer = torch.optim.AdamW(groups, lr=ADAMW.learning_rate, fused=True)
    arrays = {name: torch.tensor(array[0]) for name, array in make_batch()._asdict().items()}
    processor = IdeficsImageProcessor()
    pixels = (arrays["pixel_values"] / 255 - torch.tensor(processor.image_mean)) / torch.tensor(processor.image_std)
    inputs = {
        "input_ids": arrays["input_ids"].long(),
        "attention_mask": arrays["segment_ids"].long(),
        "pixel_values": pixels.movedim(-1, 2).contiguous(),
        "image_attention_mask": arrays["image_attention_mask"].long(),
    }
    labels = arrays["labels"][:, 1:].reshape(-1).long()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        logits = model(**inputs, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0, foreach=True)
        optimizer.step()
        return loss.item()

    return step


STEPS = {"ours": our_step, "torch": torch_step}


class Measured(NamedTuple):
    """One step of a worker: its loss, its seconds, and the process's peak of resident bytes so far."""

    loss: float
    seconds: float
    peak: int


def work(connection: Connection, directory: Path, preset: str, whose: str) -> None:
    """What a worker does: a step whenever it is told to."""
    step = STEPS[whose](directory, preset)
    while connection.recv():
        start = time.perf_counter()
        loss = step()
        connection.send(Measured(loss, time.perf_counter() - start, peak()))


def peak() -> int:
    """This process's own peak of resident bytes (Linux); `ru_maxrss` would start at that of the process before it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def measure(directory: Path, preset: str, rounds: int) -> tuple[Pair, list[int]]:
    """Times of both, in turns, each in a process of its own, and their peaks of memory.

    Raises:
        SystemExit: they do not compute the same loss.
    """
    spawn, connections, processes = multiprocessing.get_context("spawn"), [], []
    for whose in STEPS:
        ours, theirs = spawn.Pipe()
        processes.append(spawn.Process(target=work, args=(theirs, directory, preset, whose), daemon=True))
        processes[-1].start()
        connections.append(ours)

    def turn() -> list[Measured]:
        measured = []
        for connection in connections:
            connection.send(True)
            measured.append(connection.recv())
            time.sleep(REST)
        return measured

    for _ in range(2):  # they compile and warm up
        ours, theirs = turn()
        if abs(ours.loss - theirs.loss) > 1e-4 * theirs.loss:
            raise SystemExit(f"The losses are {ours.loss} and {theirs.loss}; the benchmark would mean nothing.")
    turns = [turn() for _ in range(rounds)]
    for connection, process in zip(connections, processes, strict=True):
        connection.send(False)
        process.join()
    times = [[one.seconds for one in side] for side in zip(*turns, strict=True)]
    return summary(*times), [one.peak for one in turns[-1]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        model = IdeficsForVisionText2Text.from_config(MODEL, jax.random.key(0))
        model.save_pretrained(directory)
        count = sum(leaf.size for leaf in jax.tree.leaves(model))
        del model
        measured = {preset: measure(directory, preset, rounds) for preset in PRESETS}
    print(f"{count / 1e6:.0f} M parameters, {ROWS} rows of {TOKENS} tokens and {IMAGES} images; ", end="")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| | idefics-jax | transformers | ratio (min to max) |\n|---|---|---|---|")
    for preset, (pair, _) in measured.items():
        print(f"| step, `{preset}` | {pair.ours:.2f} s | {pair.reference:.2f} s | {pair.ratios} |")
    for preset, (_, (ours, theirs)) in measured.items():
        print(f"| peak memory, `{preset}` | {ours / 1e9:.2f} GB | {theirs / 1e9:.2f} GB | {theirs / ours:.2f} |")


if __name__ == "__main__":
    main()
