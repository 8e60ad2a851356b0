"""Sizes that programs are compiled for: inputs are padded up to the next one, so that few programs serve any input."""

from collections.abc import Iterator

TOKENS = 32  # smallest prompt
SLOTS = 128  # smallest key-value cache
IMAGES = 4  # fewest images per row: what an unused one costs in decoding is far below a percent of reading the weights
LARGEST_CHUNK = 8  # images that one call of the vision tower reads


def bucket(size: int, smallest: int = 1) -> int:
    """The first of `smallest * (1, 2, 3, 4, 6, 8, 12, 16, ...)` that holds `size`: never more than half wasted."""
    units = max(1, -(-size // smallest))
    power = 1 << (units - 1).bit_length()
    return smallest * (power * 3 // 4 if power >= 4 and units <= power * 3 // 4 else power)


def chunks(count: int, unit: int = 1) -> Iterator[tuple[int, int]]:
    """Cuts `count` items into `(start, size)` pieces of `unit * (8, 4, 2 or 1)`, the last one perhaps beyond the end.

    Thirteen images are read as 8 + 4 + 1: three of four programs, no image padded. `unit` is the number of devices that
    a piece is spread over.
    """
    start, size = 0, LARGEST_CHUNK * unit
    while start < count:
        while size > unit and size > count - start:
            size //= 2
        yield start, size
        start += size
