"""`python -m train`: its options and `--help`, from the dataclasses in `config.py`."""

import argparse
from collections.abc import Sequence

import tyro

from idefics_jax.cli import guarded

from .config import TrainConfig

EXAMPLES = """
examples:
  An image-captioning folder (images and metadata.jsonl with "file_name" and "text"), by LoRA, on one device:
    python -m train --recipe lora --model HuggingFaceM4/idefics-9b --data.train photos --data.eval held-out \\
      --out runs/photos --export photos-model
  Conversations, all weights, on every host of a v5e-256:
    python -m train --recipe idefics-instruct --pod v5e-256 --model gs://bucket/idefics-9b --data.loss-on answers \\
      --data.train gs://bucket/chats.jsonl --out gs://bucket/run --process.coordinator auto

  Whether that fits the pod and how fast it would be, from the TPU compiler, on any machine:
    python -m train --recipe idefics-instruct --pod v5e-256 --random 80b --out runs/chats --plan v5e:16x16

The same command again goes on where the run stopped. Status 0: finished; 75: told to stop (SIGTERM), saved, to be
started again; 130: the same after Ctrl-C; 1: an error, in one sentence. IDEFICS_JAX_DEBUG=1 shows where it came from.
"""


def parse(arguments: Sequence[str]) -> TrainConfig:
    """The configuration: the options over the defaults of the recipe and the machine that they name.

    Raises:
        FileNotFoundError, ValueError: no such model, recipe or machine.
        SystemExit: options that are wrong (status 2), or `--help`.
    """
    # The recipe's defaults depend on the model, and tyro wants defaults first; so these four are looked at before.
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    names = ("recipe", "pod", "model", "random")
    for name in names:
        early.add_argument(f"--{name}")
    known, _ = early.parse_known_args(arguments)
    default = TrainConfig(out=tyro.MISSING, **{name: getattr(known, name) for name in names})
    if "--help" not in arguments and "-h" not in arguments and (known.recipe or known.pod):
        from .recipes import with_defaults
        from .starting import model_config

        default = with_defaults(default, model_config(default))
    return tyro.cli(
        TrainConfig,
        args=list(arguments),
        default=default,
        prog="python -m train",
        description=(TrainConfig.__doc__ or "") + "\n" + EXAMPLES,
        config=(tyro.conf.FlagConversionOff,),
    )


def main(arguments: Sequence[str]) -> int:
    """Trains and returns the exit status; what goes wrong is one sentence on standard error and status 1."""

    def run() -> int:
        config = parse(arguments)
        if config.plan is not None:
            from .planning import plan

            return plan(config)
        from .run import run

        return run(config)

    return guarded("train", run)
