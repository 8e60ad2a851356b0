"""The folder in which an output grows, and the records in it that let a stopped run go on.

On a disk it is OUT.partial, which is renamed to OUT at the end, or whose files are committed to OUT where that exists.
An object store cannot rename: there it is OUT itself, and config.json, without which nothing loads it, is written last.
"""

import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from idefics_jax.checkpoints.pretrained import older_checkpoint
from idefics_jax.utils.commit import LAST, publish, recover, remove
from idefics_jax.utils.lock import locked
from idefics_jax.utils.paths import AnyPath

from .manifest import MANIFEST

OLDER = ("*.json", "*.jinja", "*.model", "pytorch_model*.bin")
INSIDE = ".partial"  # the folder in an output that is a mount, or that nothing can be put beside
RECORDS = ".progress"  # a file for the job, and one for each finished unit
JOB = "job.json"


class Work(NamedTuple):
    """An output in the making: where it will be, and where it grows."""

    out: AnyPath
    folder: AnyPath

    @classmethod
    def at(cls, out: AnyPath) -> "Work":
        """The work on an output.

        Raises:
            ValueError: the output is the root of the file system.
            OSError: a save in it was stopped, and cannot be completed.
        """
        if not isinstance(out, Path):
            return cls(out, out)
        if out.name in ("", ".."):  # such as "."
            out = out.resolve()
        if not out.name:
            raise ValueError(f"{out} cannot be the output; name a directory to make.")
        if out.is_dir():
            recover(out)
            if os.path.ismount(out) or not os.access(out.parent, os.W_OK):  # nothing beside it can be renamed into it
                return cls(out, out / INSIDE)
        return cls(out, out.with_name(f"{out.name}.partial"))

    @property
    def records(self) -> AnyPath:
        """The folder of records."""
        return self.folder / RECORDS

    def locked(self) -> AbstractContextManager[None]:
        """Hold the lock of the output; on a disk it is beside the folder, which is renamed or removed meanwhile."""
        beside = self.folder.with_name(f".{self.out.name}.lock") if isinstance(self.out, Path) else None
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
        if isinstance(self.out, Path) and self.out.exists() and not self._is_empty():
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

    def _is_empty(self) -> bool:
        """Return True if nothing but hidden files, which stay, is in the directory of the output."""
        return self.out.is_dir() and all(path.name.startswith(".") for path in self.out.iterdir())

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
        """Write config.json and give the output its name; on a disk, once all of it is stored safely."""
        (self.folder / LAST).write_bytes(config)
        if isinstance(self.folder, Path) and isinstance(self.out, Path):
            publish(self.folder, self.out, older_files)
            remove(self.out / RECORDS)
        else:
            remove(self.records)


def older_files(directory: AnyPath) -> Iterator[str]:
    """Name the files of an older checkpoint that a conversion makes obsolete: a tokenizer's are of no use elsewhere."""
    yield from older_checkpoint(directory)
    for pattern in OLDER:
        yield from (file.name for file in directory.glob(pattern))
