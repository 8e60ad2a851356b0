"""Compiled programs kept on disk from one process to the next."""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


def cache_directory() -> Path | None:
    """Return where this user's programs keep what they can make again: `idefics-jax` in the platform's own place.

    None where the user has no home.
    """
    windows = os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else None
    given = Path(windows or os.environ.get("XDG_CACHE_HOME") or "")
    if given.is_absolute():  # others are to be ignored, says the XDG specification
        return given / "idefics-jax"
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and no account either
        return None
    places = {"win32": "AppData/Local", "darwin": "Library/Caches"}
    return home / places.get(sys.platform, ".cache") / "idefics-jax"


def keep_compiled_programs(tell: Callable[[str], object] | None = None) -> None:
    """Turn on JAX's persistent compilation cache in the user's cache directory, if that can be written.

    JAX's own settings stay as they are: `JAX_COMPILATION_CACHE_DIR` names another directory, and
    `JAX_ENABLE_COMPILATION_CACHE=0` keeps nothing.

    Args:
        tell: is called with a sentence where programs cannot be kept.
    """
    settings: Any = jax.config  # whose attributes JAX makes as it starts
    if not settings.jax_enable_compilation_cache:
        return
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", settings.jax_compilation_cache_dir)
    if folder is None:
        own = cache_directory()
        if own is None or (tell is None and not _is_writable(own / "compiled")):
            return
        folder = str(own / "compiled")
        jax.config.update("jax_compilation_cache_dir", folder)
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        _look_again()
    if tell and folder and "://" not in folder and not _is_writable(folder):
        tell(f"Compiled programs are not kept: {folder} cannot be written; JAX_COMPILATION_CACHE_DIR names another.")
        jax.config.update("jax_enable_compilation_cache", False)


def _look_again() -> None:
    """Let JAX look for the cache: it decides once, at its first program, which may have been compiled before."""
    from jax.experimental.compilation_cache import compilation_cache

    compilation_cache.reset_cache()


def _is_writable(folder: Path | str) -> bool:
    """Make a directory, and return True if files can be made in it."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except (OSError, ValueError):
        return False
