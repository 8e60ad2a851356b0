"""`inspect`: what a checkpoint holds, by component, from the headers of its files alone."""

import argparse
from collections.abc import Iterable

from rich.filesize import decimal

from .source import open_checkpoint

COMPONENTS = {  # where our path begins -> component
    "model/vision/": "vision",
    "model/resampler/": "resampler",
    "model/decoder/groups/cross/": "cross-attention",
    "model/decoder/": "text",
    "model/embedding/": "embeddings",
    "head/": "embeddings",
}


def show(options: argparse.Namespace) -> int:
    """Prints the table.

    Raises:
        OSError, ValueError: the checkpoint cannot be read, or its parts do not belong together.
    """
    checkpoint = open_checkpoint(options.path)
    places = checkpoint.places
    if options.tensors:
        rows = [
            (name, tensor.dtype.name, "x".join(map(str, tensor.shape)), decimal(tensor.nbytes), our_path(*places[name]))
            for name, tensor in checkpoint.tensors.items()
        ]
        print_table(("tensor", "dtype", "shape", "size", "in idefics-jax"), rows, right=(3,))
        return 0
    groups: dict[str, list] = {component: [] for component in COMPONENTS.values()}
    for name, tensor in checkpoint.tensors.items():
        groups[component(places[name][0].path)].append(tensor)
    groups["total"] = list(checkpoint.tensors.values())
    rows = []
    for title, tensors in groups.items():
        size = sum(tensor.nbytes for tensor in tensors)
        parameters = sum(tensor.nbytes // tensor.dtype.itemsize for tensor in tensors)
        dtypes = ", ".join(sorted({tensor.dtype.name for tensor in tensors}))
        rows.append((title, f"{len(tensors):,}", f"{parameters:,}", decimal(size), dtypes))
    files = len({tensor.file for tensor in checkpoint.tensors.values()})
    print(f"{checkpoint.directory}: {checkpoint.format}, {files} file{'s'[: files != 1]}\n")
    print_table(("", "tensors", "parameters", "size", "dtype"), rows, right=(1, 2, 3))
    for name in checkpoint.left_out:
        print(f"\nHolds nothing to load: {name}")
    return 0


def component(path: str) -> str:
    """The component that a weight of ours belongs to."""
    path = path if path.startswith(("model/", "head/")) else f"model/{path}"
    return next(name for beginning, name in COMPONENTS.items() if path.startswith(beginning))


def our_path(weight, layer: tuple[int, ...]) -> str:
    """Where a tensor is in our arrays, such as `model/vision/layers/mlp/up/kernel[3]`."""
    return weight.path + (f"[{','.join(map(str, layer))}]" if layer else "")


def print_table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]], right: tuple[int, ...]) -> None:
    """Columns as wide as they need be, whatever the terminal, so that they can be searched; `right` are numbers."""
    table = [titles, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(titles))]
    for row in table:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
