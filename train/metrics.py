"""What a run shows while it trains, and the files about it that stay: metrics, sample predictions, TensorBoard.

The files are for looking at; a run never stops because one of them could not be written.
"""

import base64
import io
import logging
import math
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from . import jsonl
from .tensorboard import TensorBoard

METRICS, PREDICTIONS = "metrics.jsonl", "predictions.jsonl"
THUMBNAIL = 160  # pixels of the longer side
PLAIN_SECONDS = 10.0  # between lines where there is no terminal

logger = logging.getLogger(__name__)


class Prediction(NamedTuple):
    """Answer of the model to a held-out prompt. `images`: their sources; of samples uint8 `[height, width, 3]`."""

    prompt: str
    answer: str
    reference: str
    images: list[Any]

    @property
    def right(self) -> bool | None:
        """Whether the answer is the reference, but for case, spaces around it and a full stop; None: no reference."""
        answer, reference = (text.strip().rstrip(".").casefold() for text in (self.answer, self.reference))
        return answer == reference if reference else None


class Metrics(AbstractContextManager):
    """Shows and writes the metrics of a run.

    Args:
        directory: of the run; made where missing.
        steps: steps of the whole run.
        first_step: steps that are already done. What the files have of later ones (from a process that was stopped
            before it saved them) is dropped, so that each step is there once.
        visible: progress on standard error: a line that stays in place, or where that is no terminal one now and then.
        enabled: False does nothing at all: for the processes of a pod other than the first.
    """

    def __init__(self, directory: str | Path, steps: int, first_step: int, visible: bool, enabled: bool = True):
        self.directory, self.steps, self.enabled = Path(directory), steps, enabled
        self.warned = False
        self.show = visible and enabled
        self.shown = -math.inf
        self.unshown: str | None = None
        self.timed: tuple[int, float] | None = None
        console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[status]}"),
            console=console,
            redirect_stdout=False,  # it is no place for what a program prints
            disable=not (self.show and console.is_terminal),
        )
        self.task = self.progress.add_task("", total=steps, completed=first_step, status="compiling")
        if enabled:
            self.tensorboard = TensorBoard(self.directory / "tensorboard")
            self.directory.mkdir(parents=True, exist_ok=True)
            for name in (METRICS, PREDICTIONS):
                self._try(lambda name=name: jsonl.cut(self.directory / name, first_step))

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        if self.unshown is not None:
            print(self.unshown, file=sys.stderr, flush=True)
        if self.enabled:
            self._try(self.tensorboard.close)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """A step's numbers (Python's, NumPy's or JAX's): a line of `metrics.jsonl`, and `train/...` in TensorBoard.

        Known to display and report are loss, learning_rate, gradient_norm, tokens_per_second, images_per_second, mfu
        (0 to 1, or None) and skipped (how many of the steps since the last line changed nothing).
        """
        values = {name: _plain(value) for name, value in values.items()}
        self._line({"step": step, **values}, {f"train/{name}": value for name, value in values.items()})
        if self.show:
            self._show(step, values)

    def evaluation(self, step: int, values: dict[str, Any]) -> None:
        """Numbers about held-out data, named eval_...: a line of their own, and `eval/...` in TensorBoard.

        `eval_right` of `eval_answered` records is shown beside the exact match, which is their share.
        """
        values = {name: _plain(value) for name, value in values.items()}
        tags = {f"eval/{name.removeprefix('eval_')}": value for name, value in values.items()}
        self._line({"step": step, **values}, tags)
        if self.show:
            numbers = ", ".join(
                f"{name.removeprefix('eval_').replace('_', ' ')} {value:.4g}"
                for name, value in values.items()
                if isinstance(value, int | float) and name not in COUNTS
            )
            counts = " ({} of {} right)".format(*(values[name] for name in COUNTS)) if COUNTS[0] in values else ""
            self.note(f"step {step:,}: held-out {numbers}{counts}")

    def predictions(self, step: int, predictions: list[Prediction]) -> None:
        """Write samples: lines of `predictions.jsonl` with small JPEG images in them, and texts in TensorBoard."""
        if not self.enabled:
            return
        lines = [
            {
                "step": step,
                "prompt": one.prompt,
                "answer": one.answer,
                "reference": one.reference,
                "right": one.right,
                "images": [_data_url(image) for image in one.images],
            }
            for one in predictions
        ]
        self._try(lambda: jsonl.append(self.directory / PREDICTIONS, lines))
        for index, one in enumerate(predictions):
            text = f"{one.prompt}\n\n**Answer:** {one.answer}\n\n**Reference:** {one.reference}"
            self._try(
                lambda i=index, one=one, text=text: self.tensorboard.sample(step, f"sample_{i}", text, one.images)
            )

    def _line(self, line: dict[str, Any], tags: dict[str, Any]) -> None:
        if self.enabled:
            self._try(lambda: jsonl.append(self.directory / METRICS, [line]))
            numbers = {tag: value for tag, value in tags.items() if isinstance(value, int | float)}
            # TensorBoard shows no point that is not finite, and tensorboardX warns of each.
            points = {tag: float(value) for tag, value in numbers.items() if math.isfinite(value)}
            self._try(lambda: self.tensorboard.scalars(line["step"], points))

    def _show(self, step: int, values: dict[str, Any]) -> None:
        now = time.monotonic()
        # Time left is reckoned from the first step on, not before: that one was compiled.
        self.timed = self.timed or (step, now)
        parts = [label.format(values[name]) for name, label in LABELS.items() if values.get(name) is not None]
        if step > self.timed[0]:
            left = (self.steps - step) * (now - self.timed[1]) / (step - self.timed[0])
            parts.append(f"{timedelta(seconds=round(left))} left")
        if not self.progress.disable:
            self.progress.update(self.task, completed=step, status="  ".join(parts))
            return
        self.unshown = "  ".join([f"step {step:,}/{self.steps:,}", *parts])
        if now - self.shown >= PLAIN_SECONDS:
            print(self.unshown, file=sys.stderr, flush=True)
            self.shown, self.unshown = now, None

    def note(self, text: str) -> None:
        """Tells a person something, above the progress line."""
        if self.progress.disable:
            print(text, file=sys.stderr, flush=True)
        else:
            self.progress.console.print(text, highlight=False, markup=False)

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if not self.warned:
                logger.warning("Metrics are missing from %s from now on: %s. Training goes on.", self.directory, error)
            self.warned = True


#: Values of an evaluation that say how many the others are of.
COUNTS = ("eval_right", "eval_answered")
#: What the progress line shows of a step, short enough for a terminal of 80 columns.
LABELS = {
    "loss": "loss {:.4f}",
    "tokens_per_second": "{:,.0f} tok/s",
    "images_per_second": "{:,.1f} img/s",
    "mfu": "MFU {:.1%}",
}


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _data_url(image: np.ndarray) -> str:
    picture = Image.fromarray(image)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
