"""Commit of a directory's files: a kill at any moment leaves the old ones or the new ones, never a mixture.

New files are written to a hidden folder in the directory. Renaming that folder to `.saved` decides: from then on the
new files count, and whoever opens the directory next moves those that a killed process did not move. Until all are
moved `config.json` is missing, so that no other program loads a mixture. An object store cannot rename: there the files
are written in place, and `config.json` last.
"""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path, PurePath

from idefics_jax.utils.paths import AnyPath, PathLike, as_path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

STAGING = ".saving-"  # and a random end: a folder that is being written
DECIDED = ".saved"  # the folder once all of it is written
REPLACES = ".replaces.json"  # in the folder: names of older files that the new ones make obsolete
LAST = "config.json"  # a directory without it is no checkpoint

_PERMISSION = "change its permissions, or choose another place"
_IN_THE_WAY = "move what is in the way, or choose another place"
_MENDS = {
    errno.ENOSPC: "free some space, or choose another place",
    errno.EDQUOT: "free some space, or choose another place",
    errno.EFBIG: "raise the limit of file sizes, or choose another place",
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: "choose another place",
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY,
    errno.EEXIST: _IN_THE_WAY,
    errno.ENAMETOOLONG: "choose a shorter name",
}


class NotWrittenError(OSError):
    """A directory could not be written; what was in it is unchanged."""


def no_names(directory: AnyPath) -> Iterable[str]:
    """Name no file of a directory."""
    return ()


@contextmanager
def committed(directory: PathLike, replaces: Callable[[AnyPath], Iterable[str]] = no_names) -> Iterator[AnyPath]:
    """Give a folder to write files into, which appear together in the directory when the context ends.

    Files of the same names are replaced; others stay, but for those that `replaces` names. An exception or a kill
    leaves the directory as it was. Commits nest: files that are committed to the folder are part of its commit. Names
    that begin with a dot are not moved.

    Args:
        directory: is made where it is missing; at a URL it is itself the folder.
        replaces: names the older files in a directory that the new ones make obsolete.

    Raises:
        NotWrittenError: the directory cannot be written, or an OSError passed through the context.
        OSError: the new files are complete, but some could not be moved; the next to open the directory moves them.
    """
    directory = as_path(directory)
    try:
        if isinstance(directory, Path):
            with _staged(directory) as folder:
                yield folder
                _decide(folder, directory, replaces)
        else:
            for name in replaces(directory):
                remove(directory / name)
            yield directory
    except Exception as error:
        if isinstance(directory, Path) and not isinstance(error, OSError):
            raise  # not the disk's; each kind of server has its own
        raise not_written(directory, error) from error
    if isinstance(directory, Path):
        try:
            _finish(directory)
        except OSError as error:
            raise OSError(f"{directory} could not be completed: {reason(error)}; then load it.") from error


def publish(folder: Path, directory: Path, replaces: Callable[[AnyPath], Iterable[str]]) -> None:
    """Rename a finished folder to `directory`; where that exists, commit the folder's files to it.

    Raises:
        OSError: the folder could not be renamed, or a file could not be moved.
    """
    if directory.exists():
        recover(directory)
        _decide(folder, directory, replaces)
        _finish(directory)
    else:
        _synchronize(folder)
        folder.rename(directory)
        _synchronize_one(directory.parent)


def recover(directory: Path) -> None:
    """Finish a commit whose process was killed after the decision.

    Raises:
        OSError: the directory cannot be written.
    """
    if not (directory / DECIDED).exists():
        return
    try:
        _finish(directory)
    except OSError as error:
        raise OSError(
            f"{directory} holds a save that was stopped and cannot be completed here: {reason(error)}; open it once "
            "where it can be written."
        ) from error


def check_place(directory: PathLike) -> None:
    """Refuse a directory that cannot be made or written, before work is spent on what it shall hold.

    Raises:
        NotWrittenError: it cannot.
    """
    directory = as_path(directory)
    if not isinstance(directory, Path):
        return
    try:
        there = next(path for path in [directory.absolute(), *directory.absolute().parents] if os.path.lexists(path))
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{there} is not a directory")
        with tempfile.TemporaryDirectory(prefix=STAGING, dir=there):
            pass
    except OSError as error:
        raise NotWrittenError(f"{directory} cannot be written: {reason(error)}.") from error


def not_written(directory: AnyPath, error: Exception) -> NotWrittenError:
    """Say that a directory could not be written, and why."""
    why = error.__cause__ if isinstance(error, NotWrittenError) and isinstance(error.__cause__, Exception) else error
    unchanged = "; nothing in it was changed" if isinstance(directory, Path) else ""
    return NotWrittenError(f"{directory} could not be written: {reason(why)}{unchanged}.")


def reason(error: Exception) -> str:
    """Say what failed and how to mend it."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = text.splitlines()[0].split(" [source locations")[0].rstrip(".")  # TensorStore's
    mend = _MENDS.get(getattr(error, "errno", None) or 0)
    return f"{text} ({mend})" if mend else text


def remove(path: AnyPath) -> None:
    """Remove a file, or a folder with all that is in it; nothing happens where there is none."""
    with suppress(FileNotFoundError):
        if not isinstance(path, Path):
            path.fs.rm(path.path, recursive=True)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _synchronize(folder: Path) -> None:
    """Wait until a folder and all that is in it are on the disk itself."""
    for path in [*folder.rglob("*"), folder]:
        _synchronize_one(path)


def _synchronize_one(path: Path) -> None:
    with suppress(OSError) if path.is_dir() else nullcontext():  # not every file system does it for folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _staged(directory: Path) -> Iterator[Path]:
    """Give a new folder in a directory, and remove it unless it was renamed, and what killed processes left."""
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    recover(directory)
    for left in directory.glob(f"{STAGING}*"):
        with _locked(left, wait=False) as own:  # a living process keeps its own
            if own:
                shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=STAGING, dir=directory))
    try:
        with _locked(folder):
            yield folder
    finally:
        if folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
            if made:
                with suppress(OSError):
                    directory.rmdir()


def _decide(folder: Path, directory: Path, replaces: Callable[[AnyPath], Iterable[str]]) -> None:
    """Make a finished folder's files the ones that count."""
    new = {path.name: path.is_dir() for path in folder.iterdir() if not path.name.startswith(".")}
    obsolete = set(replaces(directory)) - new.keys()
    obsolete |= {name for name, is_folder in new.items() if is_folder and (directory / name).is_dir()}
    for name, is_folder in new.items():
        if (directory / name).is_dir() and not is_folder:
            raise IsADirectoryError(errno.EISDIR, f"{directory / name} is a directory")
    (folder / REPLACES).write_text(json.dumps(sorted(obsolete)))
    _synchronize(folder)
    while True:
        try:
            folder.rename(directory / DECIDED)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            _finish(directory)  # another process has decided meanwhile: the last one counts
    _synchronize_one(directory)


def _finish(directory: Path) -> None:
    """Move a decided commit's files to their places; as often as need be, from several processes too."""
    decided = directory / DECIDED
    if not decided.is_dir() or decided.is_symlink():
        return
    with _locked(decided) as own:
        if not own:
            return  # another process has moved them meanwhile
        new, hidden = [], []
        for path in decided.iterdir():
            (hidden if path.name.startswith(".") else new).append(path.name)
        if LAST in new:
            remove(directory / LAST)
        if REPLACES in hidden:
            for name in json.loads((decided / REPLACES).read_text()):
                if _is_plain(name):
                    remove(directory / name)
        for name in hidden:  # with the list: another program may use the names from now on
            remove(decided / name)
        for name in sorted(new, key=lambda name: name == LAST):
            with suppress(FileNotFoundError):
                (decided / name).replace(directory / name)
        _synchronize_one(directory)
        with suppress(OSError):  # another commit may have taken its place
            decided.rmdir()


def _is_plain(name: object) -> bool:
    """Return True for the name of a file in a directory; anybody can have written a list of names."""
    return isinstance(name, str) and PurePath(name).name == name and not name.startswith(".")


@contextmanager
def _locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the kernel's lock of a folder, where there are locks; gives False if another process has it, or had it."""
    if fcntl is None:
        yield True
        return
    descriptor = None
    try:
        own = True
        try:
            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            own = os.path.samestat(os.fstat(descriptor), folder.stat())
        except (BlockingIOError, FileNotFoundError):
            own = False
        except OSError:  # a file system without locks
            pass
        yield own
    finally:
        if descriptor is not None:
            os.close(descriptor)
