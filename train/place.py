"""Where a run's files are. On a disk they are written where they belong.

An object store cannot add to a file, and may be out of reach for a while. So a run with `--out gs://...` writes to a
directory of its own on this machine's disk, and a thread copies what has changed to the store, whole, once a minute
and after every checkpoint. Checkpoints go to the store themselves.
"""

import logging
import os
import shutil
import tempfile
import threading
from pathlib import Path

from idefics_jax.utils.paths import AnyPath, as_path

#: A directory with one of them is a checkpoint's, which a finished model replaces.
CHECKPOINT_FILES = {"config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"}
EVERY = 60.0  # seconds between copies

logger = logging.getLogger(__name__)
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # whatever it logs, with a traceback, it raises too


def check_place(option: str, out: str, checkpoint: bool = False) -> None:
    """Check that a directory can be made or written there; an object store is not asked.

    Args:
        checkpoint: other files than a checkpoint's are refused as well.

    Raises:
        OSError: the place cannot be written.
        ValueError: other files are there.
    """
    path = as_path(out)
    if not isinstance(path, Path):
        return
    path = path.absolute()
    found = next(place for place in (path, *path.parents) if place.exists() or place.is_symlink())
    if not found.is_dir():
        raise NotADirectoryError(
            f"{option} {out} cannot be a directory: {found} is a file; remove it, or name another."
        )
    if not os.access(found, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{option} {out} cannot be written: {found} allows no writing; change that, or name another."
        )
    if checkpoint and found == path:
        names = {file.name for file in path.iterdir() if not file.name.startswith(".")}
        if names and not names & CHECKPOINT_FILES:
            raise ValueError(
                f"{option} {out} holds other files, such as {min(names)}, and no checkpoint; name an empty "
                "directory or a new one."
            )


class RunDirectory:
    """A run's directory.

    Args:
        out: a path, or a URL of an object store.

    Attributes:
        path: the directory: absolute, or a URL.
        local: where its files are to be written, on a disk; made if need be.
    """

    def __init__(self, out: str | os.PathLike):
        path = as_path(out)
        self.path: AnyPath = path.absolute() if isinstance(path, Path) else path
        self.local = self.path if isinstance(self.path, Path) else Path(tempfile.mkdtemp(prefix="run-")) / path.name
        self.copied: dict[str, tuple[int, int]] = {}  # size and time of change of each file that is in the store
        self.warned = False
        self.wake, self.ending = threading.Event(), False
        self.thread: threading.Thread | None = None

    def fetch(self, *patterns: str) -> None:
        """Brings the files that match one of the patterns from the store, over what is here. On a disk: nothing to do.

        Raises:
            OSError: the store does not answer, or refuses.
        """
        if isinstance(self.path, Path):
            return
        self.local.mkdir(parents=True, exist_ok=True)
        try:
            self.path.fs.invalidate_cache()
            for file in (file for pattern in patterns for file in self.path.glob(pattern)):
                (self.local / file.name).write_bytes(file.read_bytes())
                self.copied[file.name] = self._state(self.local / file.name)
        except FileNotFoundError:  # nothing is there yet
            return
        except Exception as error:  # each kind of server has its own
            raise OSError(f"{self.path} cannot be reached: {error}.") from error

    def start(self) -> None:
        """From now on, files are copied to the store."""
        self.local.mkdir(parents=True, exist_ok=True)
        if not isinstance(self.path, Path):
            self.thread = threading.Thread(target=self._work, name="copy to the store", daemon=True)
            self.thread.start()

    def copy_soon(self) -> None:
        """Wakes the thread."""
        self.wake.set()

    def copy(self) -> bool:
        """Copies what has changed; whether all of it is there. A store out of reach is a warning, and tried again."""
        if isinstance(self.path, Path):
            return True
        try:
            for file in sorted(file for file in self.local.rglob("*") if file.is_file()):
                name, state = file.relative_to(self.local).as_posix(), self._state(file)
                if self.copied.get(name) != state:
                    # Read whole first: it may grow meanwhile, and an object's size is told beforehand.
                    (self.path / name).write_bytes(file.read_bytes())
                    self.copied[name] = state
        except Exception as error:  # each kind of server has its own
            if not self.warned:
                logger.warning("%s cannot be written: %s. Training goes on, and it is tried again.", self.path, error)
            self.warned = True
            return False
        self.warned = False
        return True

    def close(self) -> None:
        """Copies what is left, and removes the directory here; if the store is out of reach, it stays."""
        if self.thread is None:
            return
        self.ending = True
        self.wake.set()
        self.thread.join()
        self.thread = None
        if self.copy():
            shutil.rmtree(self.local.parent)
        else:
            logger.warning("What could not be copied to %s is in %s.", self.path, self.local)

    def _work(self) -> None:
        while not self.ending:
            self.wake.wait(EVERY)
            self.wake.clear()
            self.copy()

    def _state(self, file: Path) -> tuple[int, int]:
        found = file.stat()
        return found.st_size, found.st_mtime_ns
