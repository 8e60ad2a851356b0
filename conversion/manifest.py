"""`manifest.json`: what a conversion wrote, with checksums, so that it can be checked without the source."""

import json
from importlib.metadata import version
from typing import Any

import numpy as np
import xxhash

from idefics_jax.utils.paths import MAX_JSON, AnyPath, read_json, read_regular

from .source import Kind

MANIFEST = "manifest.json"
CHECKSUM = "xxh3_128"


def describe(tensor: np.ndarray) -> dict[str, Any]:
    """A tensor's entry. The checksum is of its bytes in Hugging Face's axes: the same in every format.

    XXH3 finds accidents as surely as SHA-256 at six times the speed; it is no proof against somebody who cheats.
    """
    digest = xxhash.xxh3_128_hexdigest(tensor.reshape(-1).view(np.uint8).data)
    return {"dtype": tensor.dtype.name, "shape": list(tensor.shape), CHECKSUM: digest}


def count_nonfinite(tensor: np.ndarray) -> int:
    """How many elements are NaN or infinite."""
    return tensor.size - int(np.count_nonzero(np.isfinite(tensor)))


def describe_file(file: AnyPath) -> dict[str, Any]:
    """A small file's entry."""
    content = read_regular(file, MAX_JSON)
    return {"bytes": len(content), CHECKSUM: xxhash.xxh3_128_hexdigest(content)}


def write_manifest(
    directory: AnyPath, source: str, form: str, kinds: dict[str, Kind], tensors: dict[str, Any], files: list[str]
) -> None:
    """Writes the manifest of an output whose tensors have these entries, beside these small files."""
    sizes = {name: int(np.prod(shape, dtype=np.int64)) for name, (_, shape) in kinds.items()}
    content = {
        "version": 1,
        "written_by": f"idefics-jax {version('idefics-jax')}",
        "source": source,
        "format": form,
        "parameters": sum(sizes.values()),
        "bytes": sum(size * kinds[name][0].itemsize for name, size in sizes.items()),
        "tensors": {name: tensors[name] for name in sorted(tensors)},
        "files": {name: describe_file(directory / name) for name in sorted(files)},
    }
    (directory / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")


def read_manifest(directory: AnyPath) -> dict[str, Any]:
    """The manifest of a directory.

    Raises:
        FileNotFoundError: it has none.
        ValueError: it is damaged, or names files elsewhere.
    """
    file = directory / MANIFEST
    if not file.exists():
        raise FileNotFoundError(f"{directory} has no {MANIFEST} to be checked against; name a second checkpoint.")
    try:
        content = read_json(file)
        for part in ("tensors", "files"):
            if not all(isinstance(entry, dict) for entry in content[part].values()):
                raise TypeError(f"it describes no {part}")
        if outside := [name for name in content["files"] if "/" in name or "\\" in name]:
            raise ValueError(f"{outside[0]!r} is not beside it")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error}); name a second checkpoint to compare with.") from error
    return content
