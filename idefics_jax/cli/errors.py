"""An exception as one sentence for a person."""

import errno
import os
import re
import stat
from collections.abc import Iterator
from importlib.util import find_spec

from idefics_jax.utils.console import DEBUG

LONGEST = 600  # characters of a sentence that another library wrote
OURS = {"idefics_jax", "train", "conversion"}
#: The extra that brings a module.
EXTRAS = {
    **dict.fromkeys(("optax", "orbax", "grain", "tyro", "tensorboardX"), "train"),
    "xxhash": "conversion",
    "datasets": "datasets",
    "gcsfs": "gcs",
    "s3fs": "s3",
    "libtpu": "tpu",
}
OTHERS = {"torch": "torch", "transformers": "transformers"}  # packages that no extra brings
DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than the file system or `ulimit -f` allows",
    errno.EROFS: "the file system is read-only",
}
#: The same in the text of errors of C++ libraries, which have no number.
DISK_TEXT = {
    r"ENOSPC|[Nn]o space left": DISK[errno.ENOSPC],
    r"EDQUOT|[Qq]uota exceeded": DISK[errno.EDQUOT],
    r"EFBIG|File too large": DISK[errno.EFBIG],
    r"EROFS|Read-only file system": DISK[errno.EROFS],
    r"EACCES|Permission denied": "there is no permission to write",
}
NETWORK_PACKAGES = {"aiohttp", "botocore", "google", "httpcore", "httpcore2", "httpx", "httpx2", "requests", "urllib"}
PLATFORMS = {  # plugin modules, the extra that brings one, and the device
    "tpu": (("libtpu",), "tpu", "TPU"),
    "cuda": (("jax_cuda13_plugin", "jax_cuda12_plugin"), "cuda", "NVIDIA GPU"),
}
PLATFORMS["gpu"] = PLATFORMS["cuda"]


def describe(error: BaseException) -> str:
    """Describe an error in one sentence, which names what failed: a package, disk, memory, file or network."""
    found = _package(error) or _platform(error) or _memory_or_disk(error) or _system(error)
    if found:
        return found
    text = first_sentence(error)
    if isinstance(error, OSError | ValueError | RuntimeError):
        if _network(error):
            return f"The network or a server failed: {text.rstrip('.')}."
        if _is_ours(error) and not isinstance(error, RecursionError | NotImplementedError):
            return text
        return f"{text.rstrip('.')} ({type(error).__name__}); {DEBUG}=1 shows where this came from."
    return (
        f"Unexpected {type(error).__name__}: {text.rstrip('.')}; {DEBUG}=1 shows where it came from; "
        "please report that to the maintainers."
    )


def first_sentence(error: BaseException) -> str:
    """Return the first line of an error's text that says something, shortened."""
    lines = [line.strip() for line in str(error).splitlines() if re.search(r"\w", line)]
    if not lines:
        return type(error).__name__
    text = lines[0]
    if text.endswith(":") and len(lines) > 1:
        text = f"{text} {lines[1]}"
    # A line of ours may list names; another library's may hold a whole program.
    return text if len(text) <= LONGEST or _is_ours(error) else f"{text[:LONGEST]} …"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, then what caused it."""
    for _ in range(10):
        yield error
        following = error.__cause__ or (error.__context__ if isinstance(error, ImportError) else None)
        if following is None:
            return
        error = following


def _is_ours(error: BaseException) -> bool:
    """Return True if the library or a program of it raised the error itself, with a sentence for a person."""
    trace = error.__traceback__
    if trace is None:
        return True
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] in OURS


def _package(error: BaseException) -> str | None:
    """Describe a package that is not installed, or not as another needs it."""
    for cause in _chain(error):
        if not isinstance(cause, ImportError):
            continue
        name = (cause.name or "").partition(".")[0]
        if name in EXTRAS:
            command = f"pip install 'idefics-jax[{EXTRAS[name]}]'"
        elif name in OTHERS:
            command = f"pip install {OTHERS[name]}"
        elif cause is error and name and name not in OURS:
            command = f"pip install {name}"
        else:
            continue
        if isinstance(cause, ModuleNotFoundError) and find_spec_or_none(name) is None:
            return f"{name} is not installed; {command} brings it."
        return f"{name} cannot be imported ({first_sentence(cause).rstrip('.')}); {command} --upgrade may mend it."
    return None


def find_spec_or_none(name: str) -> object | None:
    """Find a module without importing it; None if there is none, or it cannot be looked for."""
    try:
        return find_spec(name)
    except (ImportError, ValueError):
        return None


def _platform(error: BaseException) -> str | None:
    """Describe a platform of JAX_PLATFORMS that JAX cannot start."""
    if not isinstance(error, RuntimeError | AssertionError):
        return None
    asked = os.environ.get("JAX_PLATFORMS", "").split(",")[0]
    failed = re.match(r"Unable to initialize backend '(\w+)'", str(error))
    trace, innermost = error.__traceback__, ""
    while trace is not None:  # JAX asserts that a GPU backend exists, where its plugin found no GPU
        innermost, trace = trace.tb_frame.f_code.co_name, trace.tb_next
    if failed is None and not (asked and isinstance(error, AssertionError) and innermost == "backends"):
        return None
    name = failed[1] if failed else asked
    if name not in PLATFORMS:
        return f"JAX_PLATFORMS={asked or name}: JAX has no platform {name}; write cpu, tpu or cuda, or leave it unset."
    modules, extra, device = PLATFORMS[name]
    if not any(find_spec_or_none(module) for module in modules):
        article, note = ("an", " (CUDA 13; cuda12 for CUDA 12)") if extra == "cuda" else ("a", "")
        return f"JAX cannot use {article} {device}; pip install 'idefics-jax[{extra}]' brings what it needs{note}."
    reason = f" ({first_sentence(error).rstrip('.')})" if failed else ""
    return f"JAX finds no {device} that it can use{reason}; JAX_PLATFORMS=cpu computes on the CPU."


def _memory_or_disk(error: BaseException) -> str | None:
    """Describe memory that ran out, or a disk that a C++ library could not write to."""
    if isinstance(error, OSError) and error.errno is not None and error.errno != errno.ENOMEM:
        return None
    text = str(error)
    if not isinstance(error, MemoryError) and not _is_ours(error):
        for pattern, reason in DISK_TEXT.items():
            if re.search(pattern, text):
                path = re.search(r'["\' ]((?:/[^"\' :\]]+)+)', text)
                return f"{path[1] if path else 'A file'} cannot be written: {reason}."
    if isinstance(error, MemoryError) and text and _is_ours(error) and error.__traceback__ is not None:
        return first_sentence(error)
    exhausted = "RESOURCE_EXHAUSTED" in text or "Out of memory" in text or getattr(error, "errno", None) == errno.ENOMEM
    if not exhausted and not isinstance(error, MemoryError):
        return None
    reason = f" ({first_sentence(error).rstrip('.')})" if text else ""
    return f"The memory is too small for what this command asks{reason}; ask for less at a time, or use more devices."


def _system(error: BaseException) -> str | None:
    """Describe an error of the operating system: which file, and why."""
    if not isinstance(error, OSError) or error.errno is None:
        return None
    reason = error.strerror or os.strerror(error.errno)
    if error.filename is None or isinstance(error.filename, int):
        if error.errno in DISK:
            return f"The output cannot be written: {DISK[error.errno]} ({reason})."
        return f"The network failed: {reason}." if _network(error) else None
    name = os.fsdecode(error.filename)
    if error.filename2 is not None:
        return f"{name} cannot be moved to {os.fsdecode(error.filename2)}: {reason}."
    if error.errno in DISK:
        return f"{name} cannot be written: {DISK[error.errno]}."
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{name} cannot be {_attempted(name)}: there is no permission."
    plain = {
        errno.ENOENT: "does not exist",
        errno.EISDIR: "is a directory, not a file",
        errno.EEXIST: "exists already",
        errno.ENOTDIR: "is below a file, where only a directory can be",
        errno.ENAMETOOLONG: "is too long for a file name",
        errno.ELOOP: "is a link that leads to itself",
    }
    # An answer's place is told with its reason: what stands in the way may be something else than its name says.
    return f"{name} {plain[error.errno]}." if error.errno in plain else f"{name} cannot be used: {reason}."


def _attempted(name: str) -> str:
    """Guess from the file's state what was attempted: "read" or "written"."""
    try:
        kind = os.stat(name)
    except OSError:
        return "reached"
    if stat.S_ISDIR(kind.st_mode):
        return "written" if os.access(name, os.R_OK | os.X_OK) else "read"
    return "written" if os.access(name, os.R_OK) else "read"


def _network(error: BaseException) -> bool:
    """Return True if a connection failed."""
    return isinstance(error, ConnectionError | TimeoutError) or any(
        isinstance(cause, ConnectionError) or type(cause).__module__.partition(".")[0] in NETWORK_PACKAGES
        for cause in _chain(error)
    )
