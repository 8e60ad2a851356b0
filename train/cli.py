"""Options of training and their `--help`, from the dataclasses in `config.py`."""

import io
import json
import re
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, get_args

from idefics_jax.cli import guarded
from idefics_jax.cli.arguments import Parser
from idefics_jax.cli.process import tell
from idefics_jax.utils.console import prepare

from .config import RandomName, TrainConfig

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

--config FILE takes options from a JSON file, such as the run.json that every run writes; options beside it win.
The same command again goes on where the run stopped. Status 0: finished; 75: told to stop (SIGTERM), saved, to be
started again; 130: the same after Ctrl-C; 1: an error, in one sentence. IDEFICS_JAX_DEBUG=1 shows where it came from.
"""
UNSET = ("--recipe", "--pod", "--model", "--random", "--epochs")  # which no word on a command line leaves unset
CONFIG_LIMIT = 10 * 2**20  # bytes


def parse(arguments: Sequence[str], program: str = PROGRAM) -> TrainConfig:
    """Return the configuration: the options over the defaults of the recipe and the machine that they name.

    Raises:
        FileNotFoundError, ValueError: no such model, recipe, machine or file; or a value that is not allowed.
        SystemExit: options that are wrong (status 2), or `--help`.
    """
    # The recipe's defaults depend on the model, and tyro wants defaults first; so these are looked at before.
    names = ("recipe", "pod", "model", "random")
    early = Parser(prog=program, add_help=False, allow_abbrev=False)
    early.add_argument("--config")
    known, rest = early.parse_known_args(arguments)
    arguments = [*_from_file(known.config), *rest]
    for name in names:
        early.add_argument(f"--{name}")
    known, _ = early.parse_known_args(arguments)
    if known.random not in get_args(RandomName):
        known.random = None  # tyro names the choices
    default = TrainConfig(out="", **{name: getattr(known, name) for name in names})
    if "--help" not in arguments and "-h" not in arguments and (known.recipe or known.pod):
        from .recipes import with_defaults
        from .starting import model_config

        default = with_defaults(default, model_config(default))
    config = _parsed(arguments, default, program)
    if not config.out:
        raise ValueError("Say where the run's files go: --out with a directory or URL.")
    if config.epochs is not None and any(one == "--steps" or one.startswith("--steps=") for one in arguments):
        raise ValueError("--epochs and --steps both say how long to train; give one of them.")
    config.check()
    return config


def _parsed(arguments: Sequence[str], default: TrainConfig, program: str) -> TrainConfig:
    """Parse by tyro, whose boxed errors become one line."""
    import tyro

    shown = io.StringIO()
    try:
        with redirect_stderr(shown):
            return tyro.cli(
                TrainConfig,
                args=list(arguments),
                default=default,
                prog=program,
                description=(TrainConfig.__doc__ or "") + "\n" + EXAMPLES.replace(PROGRAM, program),
                config=(tyro.conf.FlagConversionOff,),
            )
    except SystemExit:
        if text := shown.getvalue():
            tell(f"{program}: {_without_box(text)}; see {program} --help.")
        raise


def _without_box(text: str) -> str:
    """Return the sentences in the box that tyro draws, as one line."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    words = " ".join(line.strip(" │|╭╮╰╯─+-") for line in lines if not re.match(r"\s*[╭╰+]", line)).split()
    found = re.sub(r"[\s─]*For full helptext.*", "", " ".join(words))
    return found.rstrip(" .") or "an option is wrong"


def _from_file(path: str | None) -> list[str]:
    """Return the options in a JSON file, as they are written on a command line.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds something else.
    """
    if path is None:
        return []
    try:
        with Path(path).open(encoding="utf-8") as file:
            values = json.loads(file.read(CONFIG_LIMIT))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--config {path} is not a JSON file: {error}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"--config {path} holds no options; give a JSON object, as in a run's run.json.")
    values.pop("starts", None)
    return _options(values)


def _options(values: dict[str, Any], prefix: str = "--") -> list[str]:
    options: list[str] = []
    for name, value in values.items():
        option = prefix + name.replace("_", "-")
        if isinstance(value, dict):
            options += _options(value, f"{option}.")
        elif isinstance(value, list):
            options += [option, *map(str, value)] if value else []
        elif value is not None or prefix + name not in UNSET:
            options += [option, str(value)]
    return options


def main(arguments: Sequence[str], program: str = PROGRAM) -> int:
    """Train and return the exit status; an error is one sentence on standard error and status 1.

    Args:
        program: name that --help and errors say.
    """
    prepare()

    def run() -> int:
        config = parse(arguments, program)
        if config.plan is not None:
            from .planning import plan

            return plan(config)
        from .run import run

        return run(config)

    return guarded(program.removeprefix("python -m "), run)
