"""The programs for training and conversion: inside this package where it was installed, beside it in a checkout."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import idefics_jax

Main = Callable[[Sequence[str], str], int]  # of the arguments and of the name that --help says


def train_main() -> Main:
    """Return the main function of training."""
    return _package("train").main


def conversion_main() -> Main:
    """Return the main function of conversion."""
    return _package("conversion").main


def _package(name: str) -> Any:
    """Import the `cli` module of a program.

    Raises:
        FileNotFoundError: the program is not there.
    """
    if find_spec(f"idefics_jax.{name}") is not None:
        return import_module(f"idefics_jax.{name}.cli")
    root = Path(idefics_jax.__file__).resolve().parent.parent
    if not (root / name / "cli.py").is_file():
        raise FileNotFoundError(f"{root} has no {name}/, so this is neither an installed idefics-jax nor a checkout.")
    # Before everything else, in processes that are started from here too: a user's own `train` may be in the way.
    sys.path.insert(0, str(root))
    return import_module(f"{name}.cli")
