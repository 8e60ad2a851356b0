"""Checkpoints of a run: written in the background by Orbax, kept or thrown away by rule, and read back the newest
first, on a disk or in an object store.

Each is a folder `checkpoints/STEP` with three items, so that a part can be read without the rest: `params`, the weights
that train (nested by path, as `conversion` and `from_pretrained` read them); `optimizer`; and `data`, where every
stream of documents was.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from fsspec.config import conf
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from idefics_jax.utils.paths import AnyPath

from .config import CheckpointConfig
from .orbax_s3 import teach_s3
from .step import TrainState

METRIC = "eval_loss"

logger = logging.getLogger(__name__)


class Saved(NamedTuple):
    """Contents of a checkpoint: the state, each data stream's `[streams, numbers]`, int32, and sums over all steps."""

    state: TrainState
    streams: np.ndarray
    totals: dict[str, Any]


class Checkpoints:
    """The checkpoints in a run's directory.

    Args:
        directory: of the run: absolute, or a URL.
        config: when and which.
    """

    def __init__(self, directory: AnyPath, config: CheckpointConfig):
        self.directory = epath.Path(str(directory / "checkpoints"))
        kept: list[policies.PreservationPolicy] = [policies.LatestN(n=config.keep)]
        if config.keep_best:
            # The last in order are kept, so the lowest loss has to come last.
            best = policies.BestN(
                get_metric_fn=lambda metrics: metrics[METRIC],
                reverse=True,
                n=config.keep_best,
                keep_checkpoints_without_metrics=False,
            )
            kept.append(best)
        finished = None  # Orbax's own way of telling a checkpoint that is finished from one that is not
        if not isinstance(directory, Path):
            # A listing that is kept would not show what TensorStore, or another process, has written since.
            for kind in ("gs", "s3"):
                conf.setdefault(kind, {})["use_listings_cache"] = False
            if directory.protocol == "s3":
                finished = teach_s3()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
            temporary_path_class=finished,
        )
        with _told("read", self.directory):
            self.manager = ocp.CheckpointManager(self.directory, options=options)

    def latest(self) -> int:
        """Return the step of the newest checkpoint; 0 where there is none."""
        return max(self.manager.all_steps(), default=0)

    def save(self, step: int, saved: Saved, eval_loss: float | None, wait: bool = False) -> None:
        """Starts to write the state after `step` steps; `wait`: until it is there.

        Raises:
            OSError: this or an earlier one could not be written; the ones before are as they were.
        """
        if step in self.manager.all_steps():
            return
        state = saved.state
        rest = {"opt_state": state.opt_state, "ema": state.ema, **_counters(state)}
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            optimizer=ocp.args.StandardSave(rest),
            data=ocp.args.StandardSave({"streams": saved.streams}),
            totals=ocp.args.JsonSave(saved.totals),
        )
        metrics = None if eval_loss is None else {METRIC: eval_loss}
        with _told("written", self.directory):
            self.manager.save(step, args=items, metrics=metrics, force=True)
            if wait:
                self.manager.wait_until_finished()

    def restore(self, like: TrainState) -> Saved | None:
        """The newest checkpoint that can be read, laid out like `like`; None where there is none.

        One that cannot be read is set aside as `STEP.damaged`, with a warning.

        Raises:
            RuntimeError: there are checkpoints, and none can be read.
        """
        damaged: list[int] = []
        error: Exception | None = None
        for step in sorted(self.manager.all_steps(), reverse=True):
            restored = None
            try:
                restored = self._read(step, like)
            except Exception as caught:  # Orbax and TensorStore raise anything for damaged files
                error = caught
            if _everywhere(restored is not None):
                assert restored is not None
                self._set_aside(damaged, error)
                return restored
            damaged.append(step)
        if not damaged:
            return None
        reason = "another process could not read it" if error is None else str(error).splitlines()[0][:300]
        raise RuntimeError(
            f"No checkpoint in {self.directory} fits this run: {reason}. Give the options that the run began with (its "
            "run.json has them), or another --out."
        )

    def _read(self, step: int, like: TrainState) -> Saved:
        rest = {"opt_state": like.opt_state, "ema": like.ema, **_counters(like)}
        items: dict[str, Any] = {
            "params": ocp.args.StandardRestore(jax.tree.map(_abstract, like.params)),
            "optimizer": ocp.args.StandardRestore(jax.tree.map(_abstract, rest)),
            "data": ocp.args.StandardRestore(),
        }
        if (self.directory / str(step) / "totals").exists():  # earlier versions kept none
            items["totals"] = ocp.args.JsonRestore()
        found: Any = self.manager.restore(step, args=ocp.args.Composite(**items))
        rest = found.optimizer
        counters = {name: rest[name] for name in _counters(like)}
        state = TrainState(params=found.params, opt_state=rest["opt_state"], ema=rest["ema"], **counters)
        return Saved(state, np.asarray(found.data["streams"]), found.get("totals") or {})

    def _set_aside(self, damaged: list[int], error: Exception | None) -> None:
        for step in damaged:
            logger.warning(
                "Checkpoint %d is damaged (%s); going on from the one before it. It is kept as %d.damaged.",
                step,
                str(error).splitlines()[0][:200],
                step,
            )
            if jax.process_index() == 0:
                (self.directory / str(step)).rename(self.directory / f"{step}.damaged")
        if damaged:
            _everywhere(True)
            self.manager.reload()

    def close(self) -> None:
        """Waits until everything is written; raises as `save`."""
        with _told("written", self.directory):
            self.manager.close()


@contextmanager
def _told(what: str, directory: epath.Path) -> Iterator[None]:
    """Whatever Orbax, TensorStore or a store's client raises, as an OSError of one sentence."""
    try:
        yield
    except Exception as error:
        raise OSError(
            f"Checkpoints in {directory} cannot be {what}: {_reason(error)}. Those that were finished are whole."
        ) from error


#: Words of system errors, in whatever a library wraps them, and what they mean.
CAUSES = {
    ("No space left on device", "ENOSPC"): "the disk is full; free some space there, and the same command goes on",
    ("Disk quota exceeded", "EDQUOT"): "the disk quota is used up; free some space there, and the same command goes on",
    ("File too large", "EFBIG"): "the file system takes no file of that size; choose another place",
    ("Permission denied", "EACCES"): "permission is denied; make it writable, and the same command goes on",
    ("Read-only file system", "EROFS"): "the file system is read-only; choose another place",
}


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    for words, meaning in CAUSES.items():
        if any(word in text for word in words):
            return meaning
    return text.splitlines()[0][:300].rstrip(".")


def _counters(state: TrainState) -> dict[str, jax.Array]:
    return {name: getattr(state, name) for name in ("step", "skipped", "skipped_in_row")}


def _abstract(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def _everywhere(true: bool) -> bool:
    """Whether it is so in every process; all wait here for each other."""
    if jax.process_count() == 1:
        return true
    return bool(np.all(multihost_utils.process_allgather(jnp.array(true))))
