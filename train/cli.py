"""Options of training and their `--help`, from the dataclasses in `config.py`."""

import argparse
import io
import re
from collections.abc import Sequence
from contextlib import redirect_stderr

from idefics_jax.cli import guarded
from idefics_jax.cli.process import tell

from .config import TrainConfig

PROGRAM = "python -m train"
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


def parse(arguments: Sequence[str], program: str = PROGRAM) -> TrainConfig:
    """Return the configuration: the options over the defaults of the recipe and the machine that they name.

    Raises:
        FileNotFoundError, ValueError: no such model, recipe or machine.
        SystemExit: options that are wrong (status 2), or `--help`.
    """
    import tyro

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
    refused = io.StringIO()
    try:
        with redirect_stderr(refused):
            return tyro.cli(
                TrainConfig,
                args=list(arguments),
                default=default,
                prog=program,
                description=(TrainConfig.__doc__ or "") + "\n" + EXAMPLES.replace(PROGRAM, program),
                config=(tyro.conf.FlagConversionOff,),
            )
    except SystemExit:
        if text := refused.getvalue():
            tell(f"{program}: {_without_box(text)}; see {program} --help.")
        raise


def _without_box(text: str) -> str:
    """Return the sentences in the box that tyro draws, as one line."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    words = " ".join(line.strip(" │|╭╮╰╯─+-") for line in lines if not re.match(r"\s*[╭╰+]", line)).split()
    found = re.sub(r"[\s─]*For full helptext.*", "", " ".join(words))
    return found.rstrip(" .") or "an option is wrong"


def main(arguments: Sequence[str], program: str = PROGRAM) -> int:
    """Train and return the exit status; an error is one sentence on standard error and status 1.

    Args:
        program: name that --help and errors say.
    """

    def run() -> int:
        config = parse(arguments, program)
        if config.plan is not None:
            from .planning import plan

            return plan(config)
        from .run import run

        return run(config)

    return guarded(program.removeprefix("python -m "), run)
