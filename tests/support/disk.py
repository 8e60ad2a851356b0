"""A small disk of a test's own, which can really be full."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest


class Disk(NamedTuple):
    """A file system in memory, mounted on a folder."""

    path: Path

    def fill(self, left: int) -> None:
        """Leave so many bytes free, in whole pages."""
        free = os.statvfs(self.path)
        (self.path / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize - left))

    def empty(self) -> None:
        """Free what `fill` took."""
        (self.path / "filler").unlink()


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[Disk]:
    """Mount a disk of so many bytes on a new folder; skips the test where that is not allowed."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path]
    if os.getuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", path], check=True)
