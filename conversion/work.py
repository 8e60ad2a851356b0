"""The folder in which an output grows, and the records in it that let a stopped run go on.

On a disk it is OUT.partial, which is renamed to OUT at the end. An object store cannot rename: there it is OUT itself,
and config.json, without which nothing loads it, is written last.
"""

import json
import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from idefics_jax.lock import locked
from idefics_jax.paths import AnyPath

from .manifest import MANIFEST

RECORDS = ".progress"  # a file for the job, and one for each finished unit
JOB = "job.json"


class Work(NamedTuple):
    """An output in the making: where it will be, and where it grows."""

    out: AnyPath
    folder: AnyPath

    @classmethod
    def at(cls, out: AnyPath) -> "Work":
        """The work on an output."""
        return cls(out, out.with_name(f"{out.name}.partial") if isinstance(out, Path) else out)

    @property
    def records(self) -> AnyPath:
        """The folder of records."""
        return self.folder / RECORDS

    def locked(self) -> AbstractContextManager[None]:
        """Hold the lock of the output; on a disk it is beside the folder, which is renamed or removed meanwhile."""
        beside = self.out.with_name(f".{self.out.name}.lock") if isinstance(self.out, Path) else None
        return locked(self.out if beside is None else self.folder, "convert", beside)

    def is_complete(self) -> bool:
        """Whether the output is there already."""
        return (self.out / "config.json").exists() and (self.out / MANIFEST).exists()

    def begin(self, job: dict[str, Any], resume: bool, force: bool) -> None:
        """Makes the folder, or takes up the one that a stopped run left.

        Raises:
            FileExistsError: there is something in the way, which `force` would remove.
            ValueError: the stopped run was another job, or `force` would remove what is not a checkpoint.
        """
        if isinstance(self.out, Path) and self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            if not force:
                raise FileExistsError(f"{self.out} exists already; choose another name, or --force to replace it.")
            if not (self.out / "config.json").is_file():
                raise ValueError(
                    f"{self.out} is not a checkpoint, so not even --force replaces it; remove it yourself."
                )
        elif not isinstance(self.out, Path) and (self.out / "config.json").exists() and not force:
            raise FileExistsError(f"{self.out} exists already; choose another name, or --force to replace it.")
        if self.folder.exists() and any(self.folder.iterdir()):
            if force and not resume:
                remove(self.folder)
            elif not resume:
                raise FileExistsError(
                    f"{self.folder} is what a stopped run left; --resume goes on with it, --force starts anew."
                )
            elif (earlier := self._job()) and earlier != job:
                differing = sorted(key for key in job if earlier.get(key) != job[key])
                raise ValueError(
                    f"{self.folder} was begun with another {', '.join(differing)}; repeat that command with --resume, "
                    "or start anew with --force."
                )
        self.records.mkdir(parents=True, exist_ok=True)
        if not self._job():
            (self.records / JOB).write_text(json.dumps(job))

    def _job(self) -> dict[str, Any]:
        """The job as it was recorded, before anything else; empty if the run was stopped even before that."""
        try:
            return json.loads((self.records / JOB).read_text())
        except (OSError, ValueError):
            return {}

    def record(self, unit: str, tensors: dict[str, Any]) -> None:
        """Notes that a unit is written, with its tensors' entries in the manifest."""
        (self.records / f"{unit}.json").write_text(json.dumps(tensors))

    def recorded(self, unit: str) -> dict[str, Any] | None:
        """The entries of a unit's tensors; None if it was not finished."""
        try:
            return json.loads((self.records / f"{unit}.json").read_text())
        except (OSError, ValueError):  # not there, or the run was stopped while writing it
            return None

    def publish(self, config: bytes) -> None:
        """Writes config.json and gives the output its name; on a disk, once all of it is stored safely."""
        (self.folder / "config.json").write_bytes(config)
        if not isinstance(self.folder, Path) or not isinstance(self.out, Path):
            remove(self.records)
            return
        for path in [*self.folder.rglob("*"), self.folder]:
            synchronise(path)
        replaced = self.out.with_name(f"{self.out.name}.replaced")
        if self.out.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            self.out.rename(replaced)
        self.folder.rename(self.out)
        synchronise(self.out.parent)
        shutil.rmtree(replaced, ignore_errors=True)
        shutil.rmtree(self.out / RECORDS)


def remove(folder: AnyPath) -> None:
    """Removes a folder and what is in it."""
    if isinstance(folder, Path):
        shutil.rmtree(folder)
    else:
        folder.fs.rm(folder.path, recursive=True)


def synchronise(path: Path) -> None:
    """Waits until a file or folder is on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
