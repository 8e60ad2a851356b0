"""Recipes and machines by name: the defaults that `--recipe` and `--pod` set, for a model of a given size."""

from dataclasses import replace
from typing import NamedTuple

from idefics_jax.config import IdeficsConfig

from .config import LoraConfig, MeshConfig, OptimizerConfig, RematName, TrainConfig

RECIPES = ("idefics-base", "idefics-instruct", "lora", "frozen-backbones")


class Fit(NamedTuple):
    """What a machine's memory allows where all of a model trains.

    rows: of 1,024 tokens that a device works on at a time.
    remat: what their backward pass computes again (`idefics_jax.nn.stack.Remat`).
    """

    rows: int
    remat: RematName = "full"


class Machine(NamedTuple):
    """Its devices, and what it allows for 9B and for 80B."""

    devices: int
    small: Fit
    large: Fit


#: Of 80B only `lora` fits a v5e-16. (`python -m benchmarks.pods` compiles these for TPUs.) 9B stays within three
#: quarters of a GPU's memory, which JAX takes by default: 53 of 79, 98 of 141 (between those of 8 and
#: 20 rows) and 125 of 178 GiB.
PODS = {
    "v5e-16": Machine(16, Fit(4), Fit(1)),
    "v5e-256": Machine(256, Fit(4), Fit(3)),
    "v5p-64": Machine(32, Fit(8, "dots"), Fit(4)),  # v5p counts cores, two to a chip
    "v5p-128": Machine(64, Fit(8, "dots"), Fit(3, "dots")),
    "v6e-256": Machine(256, Fit(8, ("attention",)), Fit(4, ("attention",))),
    "8xh100": Machine(8, Fit(8, "dots"), Fit(2)),
    "8xh200": Machine(8, Fit(18, "dots"), Fit(4)),
    "8xb200": Machine(8, Fit(24, "dots"), Fit(4)),
}


def with_defaults(config: TrainConfig, model: IdeficsConfig) -> TrainConfig:
    """The configuration with the defaults of its recipe and machine.

    Raises:
        ValueError: there is none of that name.
    """
    large = model.hidden_size >= 8192  # 80B
    if config.recipe is not None:
        config = _recipe(config, large)
    if config.pod is not None:
        config = _on_pod(config, large)
    return config


def _recipe(config: TrainConfig, large: bool) -> TrainConfig:
    # The authors' optimizer: model card, "Training Details", and m4/training/config.py.
    adam = OptimizerConfig(name="adamw", b1=0.9, b2=0.999, weight_decay=0.1, clip=1.0, schedule="linear")
    match config.recipe:
        case "idefics-base":
            rates = (5e-5, 3e-5) if large else (1e-5, 6e-6)
            return replace(
                config,
                trainable="idefics",
                steps=200_000,
                batch_size=(3_670_000 if large else 1_310_000) // 1024,
                z_loss=1e-3,
                data=replace(config.data, sequence_length=1024),
                optimizer=replace(adam, learning_rate=rates[0], final_learning_rate=rates[1], warmup_steps=2000),
            )
        case "idefics-instruct":
            rates = (3e-6, 3.6e-7) if large else (1e-5, 1.2e-6)
            return replace(
                config,
                trainable="full",
                steps=22_000,
                batch_size=(613_000 if large else 205_000) // 2048,
                z_loss=0.0,
                data=replace(config.data, sequence_length=2048),
                optimizer=replace(adam, learning_rate=rates[0], final_learning_rate=rates[1], warmup_steps=1000),
            )
        case "lora":  # huggingface/notebooks: finetune_image_captioning_peft.ipynb
            return replace(
                config,
                trainable="lora",
                steps=1000,
                batch_size=8,  # of two images each: the notebook's 16 a step
                lora=LoraConfig(rank=16, alpha=32.0, dropout=0.05, targets=r"attention/[qkv]$"),
                data=replace(config.data, max_images=2),
                optimizer=OptimizerConfig(learning_rate=2e-4, schedule="linear"),
            )
        case "frozen-backbones":  # the same folder: finetune_image_captioning.py
            return replace(
                config,
                trainable="frozen-backbones",
                steps=1000,
                batch_size=16,  # of four images each: its 64 a step
                data=replace(config.data, max_images=4),
                optimizer=OptimizerConfig(learning_rate=5e-6, schedule="linear"),
            )
    raise ValueError(f"There is no recipe {config.recipe!r}; known: {', '.join(RECIPES)}.")


def _on_pod(config: TrainConfig, large: bool) -> TrainConfig:
    if config.pod not in PODS:
        raise ValueError(f"There is no machine {config.pod!r}; known: {', '.join(PODS)}.")
    machine = PODS[config.pod]
    fit = machine.large if large else machine.small
    # A row of 2048 tokens takes the memory of two of 1024.
    at_once = machine.devices * max(1, fit.rows * 1024 // max(1024, config.data.tokens))
    parts = max(1, round(config.batch_size / at_once))
    return replace(
        config,
        mesh=MeshConfig(data=1, fsdp=-1, tensor=1),
        batch_size=parts * at_once,  # the recipe's number of tokens, as near as the devices divide it
        accumulation=parts,
        remat=fit.remat,
        dtype="bfloat16",
        frozen_dtype="bfloat16",
    )
