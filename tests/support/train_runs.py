"""Small runs of `python -m train` for tests: a checkpoint, records with images, and the command as a process."""

import json
import os
import socket
import subprocess
import sys
from contextlib import AbstractContextManager, closing
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.make_checkpoint import make_checkpoint

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "yellow": (230, 220, 40)}


def make_folder(folder: Path, records: int, seed: int) -> Path:
    """Squares of one colour with a question about it."""
    folder.mkdir(parents=True)
    random, lines = np.random.default_rng(seed), []
    for number in range(records):
        colour = list(COLOURS)[random.integers(len(COLOURS))]
        pixels = np.array(COLOURS[colour]) + random.integers(-20, 20, (40, 40, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        lines.append({"file_name": f"{number}.png", "question": "What colour is it?", "answer": colour})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


class Place:
    """A directory with a tiny checkpoint, training records and held-out ones."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.model = make_checkpoint(directory / "model")
        self.train = make_folder(directory / "train", 60, 0)
        self.eval = make_folder(directory / "eval", 6, 1)

    def options(self, out: str | Path, **changes: object) -> list[str]:
        """A short run in float32; a change's name has __ for a dot and _ for a hyphen.

        The learning rate is one of fine-tuning: at 5e-4 this model's weights are so unsteady that the order in which
        numbers are added up shows in the fifth digit of the fourth step's loss.
        """
        options = {
            "model": self.model,
            "out": out if "://" in str(out) else self.directory / out,
            "trainable": "full",
            "steps": 6,
            "batch_size": 8,
            "dtype": "float32",
            "frozen_dtype": "float32",
            "remat": "none",
            "data__train": self.train,
            "data__sequence_length": 64,
            "data__max_images": 2,
            "optimizer__learning_rate": 1e-4,
            "optimizer__weight_decay": 0.1,
            "z_loss": 1e-3,
            **changes,
        }
        return [
            text
            for name, value in options.items()
            for text in (f"--{name.replace('__', '.').replace('_', '-')}", str(value))
        ]

    def start(self, out: str | Path, devices: int = 1, **changes: object) -> subprocess.Popen[str]:
        """The command as a process on so many CPU devices."""
        flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
        return subprocess.Popen(
            [sys.executable, "-m", "train", *self.options(out, **changes)],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, out: str | Path, devices: int = 1, status: int = 0, **changes: object) -> str:
        """Runs the command to its end; what it printed to standard error."""
        process = self.start(out, devices, **changes)
        _, printed = process.communicate(timeout=300)
        assert process.returncode == status, printed
        return printed

    def losses(self, out: str | Path) -> list[float]:
        """The loss of every step."""
        lines = (self.directory / out / "metrics.jsonl").read_text().splitlines()
        found = [(line["step"], line["loss"]) for line in map(json.loads, lines) if "loss" in line]
        assert [step for step, _ in found] == list(range(1, len(found) + 1)), "each step once"
        return [loss for _, loss in found]


def free_port() -> int:
    """A port of this machine that nothing listens to."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


SESSION = """
import contextlib, io, json, resource, sys
from train.cli import main

answers, unlimited = sys.stdout, resource.getrlimit(resource.RLIMIT_FSIZE)
for line in sys.stdin:
    arguments, largest = json.loads(line)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest or unlimited[0], unlimited[1]))
    with contextlib.redirect_stderr(io.StringIO()) as printed, contextlib.redirect_stdout(printed):
        try:
            status = main(arguments)
        except SystemExit as end:
            status = end.code
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    print(json.dumps([status, printed.getvalue()]), file=answers, flush=True)
"""


class Session(AbstractContextManager):
    """A process with one CPU device that trains as often as it is asked to, so that JAX starts only once."""

    def __init__(self):
        flags = os.environ.get("XLA_FLAGS", "").replace("device_count=8", "device_count=1")
        self.process = subprocess.Popen(
            [sys.executable, "-c", SESSION],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, arguments: list[str], largest: int | None = None) -> tuple[int, str]:
        """Return the status of a run, and what it printed.

        Args:
            largest: bytes that a file may have.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([arguments, largest]), file=self.process.stdin, flush=True)
        status, printed = json.loads(self.process.stdout.readline())
        assert "Traceback" not in printed, printed
        return status, printed

    def __exit__(self, *_: object) -> None:
        self.process.communicate(timeout=60)
