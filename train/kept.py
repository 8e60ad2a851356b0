"""A step's program in a file: compiled once, by `--plan` on any machine, and loaded by all hosts of the pod."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from idefics_jax.utils.paths import as_path


def save(path: str, lowered: jax.stages.Lowered, program: jax.stages.Compiled) -> None:
    """Writes `program`, compiled from `lowered`, and what tells it from others."""
    content, _, _ = serialize_executable.serialize(program)
    file = as_path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = json.dumps(_marks(lowered)).encode() + b"\n" + content
    if not isinstance(file, Path):
        file.write_bytes(whole)
        return
    unfinished = file.with_name(file.name + ".unfinished")
    unfinished.write_bytes(whole)
    unfinished.replace(file)


def load(path: str, lowered: jax.stages.Lowered, devices: list[Any]) -> jax.stages.Compiled:
    """The program in the file, for these devices. What is in the file runs: it must be one's own.

    Raises:
        OSError: it cannot be read.
        ValueError: it is of another command, another JAX, or of other devices.
    """
    marks, _, content = as_path(path).read_bytes().partition(b"\n")
    try:
        found = json.loads(marks)
    except ValueError as error:
        raise ValueError(f"{path} is not a compiled step; --plan with --compiled writes one.") from error
    if different := [name for name, value in _marks(lowered).items() if found.get(name) != value]:
        raise ValueError(
            f"{path} was compiled for another {' and '.join(different)}; make it again with this command and --plan, "
            "in an environment like this one."
        )
    in_tree = jax.tree.structure(lowered.args_info)
    try:
        return serialize_executable.deserialize_and_load(content, in_tree, lowered.out_tree, execution_devices=devices)
    except Exception as error:  # the device's client has its own kinds
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path} cannot be loaded onto these devices ({reason}); was --plan for this pod?") from error


def _marks(lowered: jax.stages.Lowered) -> dict[str, str]:
    """What two programs must have in common to be the same: the step before compilation, and the compiler."""
    return {"JAX": jax.__version__, "command": hashlib.sha256(lowered.as_text().encode()).hexdigest()}
