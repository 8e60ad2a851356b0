"""Lock that keeps two runs out of one output directory.

On a disk the kernel holds the lock (flock) and releases it when the owner ends, however it ends. An object store has no
such lock, nor have some shared file systems: there the owner rewrites a small object every few seconds, and a lock
that nobody rewrites is taken over.
"""

import errno
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from idefics_jax.utils.paths import AnyPath, PathLike, as_path, naming

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
BEAT = 10.0  # seconds between two writes of a lock that the kernel does not hold
SETTLE = 1.0  # seconds after which two owners that wrote at the same time see which of them is the last
WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}

logger = logging.getLogger(__name__)


@contextmanager
def locked(directory: PathLike, program: str, file: PathLike | None = None) -> Iterator[None]:
    """Hold the lock of an output directory while the context is open.

    Args:
        directory: is made where it is missing.
        program: names the owner to others, such as "train".
        file: the lock's file, where it cannot be `.lock` in the directory.

    Raises:
        RuntimeError: another run holds the lock.
        OSError: the lock cannot be written.
    """
    directory = as_path(directory)
    path = directory / LOCK if file is None else as_path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = {
        "program": program,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now().astimezone().isoformat(" ", "seconds"),
    }
    descriptor = _flock(directory, path, owner) if isinstance(path, Path) else None
    if descriptor is None:
        with _rewritten(directory, path, owner):
            yield
        return
    try:
        yield
    finally:
        with suppress(OSError):  # the directory itself may be gone
            path.unlink()
        os.close(descriptor)


def _flock(directory: AnyPath, path: Path, owner: dict[str, Any]) -> int | None:
    """Return the descriptor of a locked file; None where the file system has no locks."""
    if fcntl is None:
        return None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The owner before may have removed the file after it was opened here: then it locks nobody out.
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                with naming(path):
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, json.dumps(owner).encode())
                return descriptor
            os.close(descriptor)
        except FileNotFoundError:
            os.close(descriptor)
        except BlockingIOError:
            found = os.read(descriptor, 1 << 12)
            os.close(descriptor)
            raise _in_use(directory, found) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno in WITHOUT_LOCKS:
                return None
            raise


@contextmanager
def _rewritten(directory: AnyPath, path: AnyPath, owner: dict[str, Any]) -> Iterator[None]:
    """Hold a lock by rewriting it until the context ends."""
    found = _read(path)
    if found is not None and not _dead(found):
        logger.warning("%s is locked; waiting %.0f seconds to see if its owner is alive.", directory, 3 * BEAT)
        end = time.monotonic() + 3 * BEAT
        while time.monotonic() < end:
            time.sleep(BEAT / 5)
            if (now := _read(path)) is None:
                break
            if now != found:
                raise _in_use(directory, now)
    _write(path, owner)
    time.sleep(SETTLE)
    if (now := _read(path)) is None or _owner(now) != owner:
        raise _in_use(directory, now or b"")
    ended = threading.Event()

    def rewrite() -> None:
        beat = 0
        while not ended.wait(BEAT):
            beat += 1
            with suppress(Exception):  # out of reach for a while
                _write(path, owner | {"beat": beat})

    thread = threading.Thread(target=rewrite, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(Exception):
            path.unlink()


def _read(path: AnyPath) -> bytes | None:
    """Return the content of a lock; None where there is none."""
    try:
        if isinstance(path, Path):
            return path.read_bytes()
        path.fs.invalidate_cache()
        content: Any = path.fs.cat_file(path.path)
        return content
    except FileNotFoundError:
        return None
    except Exception as error:  # each kind of server has its own
        raise OSError(f"{path} cannot be read: {error}.") from error


def _write(path: AnyPath, owner: dict[str, Any]) -> None:
    try:
        path.write_bytes(json.dumps(owner).encode())
    except Exception as error:  # the same
        raise OSError(f"{path} cannot be written: {error}.") from error


def _owner(content: bytes) -> dict[str, Any]:
    """Return the owner in a lock, without the beat that changes; {} where the content is damaged."""
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return {name: value for name, value in found.items() if name != "beat"} if isinstance(found, dict) else {}


def _dead(content: bytes) -> bool:
    """Return True if the owner was a process of this host that is gone."""
    owner = _owner(content)
    if owner.get("host") != socket.gethostname() or not isinstance(owner.get("pid"), int):
        return False
    return not Path(f"/proc/{owner['pid']}").exists() and Path("/proc/self").exists()


def _in_use(directory: AnyPath, content: bytes) -> RuntimeError:
    owner = _owner(content)
    if not owner:
        return RuntimeError(f"{directory} is in use by another run; wait for its end, or name another directory.")
    return RuntimeError(
        f"{directory} is in use by {owner.get('program')}, process {owner.get('pid')} on {owner.get('host')}, since "
        f"{owner.get('since')}; wait for its end, stop it (kill {owner.get('pid')}), or name another directory."
    )
