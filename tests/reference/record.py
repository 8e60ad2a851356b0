"""Records what PyTorch and transformers compute into small files, so that the tests compare with them without torch.

    python -m tests.reference.record [subject ...]            write tests/reference/<subject>.npz
    python -m tests.reference.record --check [subject ...]    compute again, and name the files that are out of date

A subject is a module `tests/reference/<subject>.py` with a function `record() -> dict[str, np.ndarray]` that imports
torch itself and is deterministic. A module may set `RTOL`, how far apart two machines' floats may be, relative to the
largest value of the array. Tests read the file with `load(subject)`;
tests/test_recordings.py checks every file live.
"""

import argparse
import importlib
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
SIZE_LIMIT = 128 * 1024  # bytes; the files live in git
RTOL = 1e-4


def subjects() -> list[str]:
    """The names of everything that can be recorded."""
    return sorted({path.stem for path in FOLDER.glob("*.py")} - {"__init__", "record"})


def load(subject: str) -> dict[str, np.ndarray]:
    """The arrays recorded for `subject`."""
    path = FOLDER / f"{subject}.npz"
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} was never recorded; run python -m tests.reference.record {subject}.")
    with np.load(path) as file:
        return dict(file)


def write(subject: str) -> Path:
    """Records `subject` and returns the file."""
    arrays = {name: np.asarray(value) for name, value in _module(subject).record().items()}
    if unsafe := [name for name, value in arrays.items() if value.dtype.hasobject]:
        raise TypeError(f"{subject} records Python objects under {', '.join(unsafe)}; record numbers or strings.")
    path = FOLDER / f"{subject}.npz"
    np.savez_compressed(path, **arrays)
    if (size := path.stat().st_size) > SIZE_LIMIT:
        path.unlink()
        raise ValueError(f"{path.name} would be {size:,} bytes of at most {SIZE_LIMIT:,}; record less of {subject}.")
    return path


def differences(subject: str) -> list[str]:
    """What a new recording of `subject` has that the file has not: one line for each array, none when it is current."""
    module = _module(subject)
    saved, fresh = load(subject), {name: np.asarray(value) for name, value in module.record().items()}
    rtol = getattr(module, "RTOL", RTOL)
    lines = [f"{name} is not in the file" for name in fresh.keys() - saved.keys()]
    lines += [f"{name} is no longer recorded" for name in saved.keys() - fresh.keys()]
    for name in sorted(fresh.keys() & saved.keys()):
        if difference := _difference(saved[name], fresh[name], rtol):
            lines.append(f"{name}: {difference}")
    return lines


def _difference(saved: np.ndarray, fresh: np.ndarray, rtol: float) -> str | None:
    if saved.shape != fresh.shape or saved.dtype != fresh.dtype:
        return f"was {saved.dtype}{list(saved.shape)}, is {fresh.dtype}{list(fresh.shape)}"
    if not np.issubdtype(fresh.dtype, np.inexact):
        unequal = int(np.sum(saved != fresh))
        return f"{unequal:,} of {fresh.size:,} values differ" if unequal else None
    finite = np.isfinite(fresh)
    if not np.array_equal(saved[~finite], fresh[~finite], equal_nan=True):
        return "NaN or infinite values differ"
    if not finite.any():
        return None
    error, largest = np.max(np.abs(saved[finite] - fresh[finite])), np.max(np.abs(fresh[finite]))
    return f"differs by up to {error:.3g} where the largest value is {largest:.3g}" if error > rtol * largest else None


def _module(subject: str):
    if subject not in subjects():
        raise SystemExit(f"{subject!r} cannot be recorded; choose from {', '.join(subjects()) or 'nothing yet'}.")
    return importlib.import_module(f"tests.reference.{subject}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.reference.record", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("subjects", nargs="*", help="what to record (default: everything)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is out of date")
    options = parser.parse_args(arguments)
    stale = False
    for subject in options.subjects or subjects():
        if not options.check:
            path = write(subject)
            print(f"{subject}: {path.stat().st_size:,} bytes")
        elif lines := differences(subject):
            stale = True
            print(f"{subject} is stale, run python -m tests.reference.record {subject}:", *lines, sep="\n    ")
        else:
            print(f"{subject}: current")
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
