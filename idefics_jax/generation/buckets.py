"""Sizes that programs are compiled for: inputs are padded up to the next one, so that few programs serve any input."""

from collections.abc import Iterator

TOKENS = 32  # smallest prompt
SLOTS = 256  # smallest key-value cache; next to reading the weights, unused slots cost nothing in decoding
IMAGES = 8  # fewest images per row; unused ones cost as little
CHUNK = 8  # images that one call of the vision tower reads


def bucket(size: int, smallest: int = 1) -> int:
    """The first of `smallest * (1, 2, 4, 8, 16, ...)` that holds `size`."""
    units = max(1, -(-size // smallest))
    return smallest << (units - 1).bit_length()


def chunks(count: int, unit: int = 1) -> Iterator[tuple[int, int]]:
    """Cuts `count` items into `(start, size)` pieces of `8 * unit` and then of `unit`, the last perhaps beyond the end.

    Ten images are read as 8 + 1 + 1: by two programs for any number of images, and none is padded. `unit` is the number
    of devices that a piece is spread over.
    """
    start = 0
    while start < count:
        size = CHUNK * unit if count - start >= CHUNK * unit else unit
        yield start, size
        start += size
