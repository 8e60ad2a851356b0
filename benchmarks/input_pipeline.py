"""Photographs on disk to training rows, by threads and by worker processes, beside Pillow decoding and resizing alone.

python -m benchmarks.input_pipeline [--rows N]
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage import data

from idefics_jax import IdeficsImageProcessor, IdeficsProcessor
from idefics_jax.processing.images import open_image
from idefics_jax.processing.tokenizer import IdeficsTokenizer
from tests.support.tiny_tokenizer import save_tiny_tokenizer
from train.config import DataConfig
from train.data.pipeline import training_rows

SIZE = (640, 480)
PHOTOS = 64
EPOCH = 100  # records of each photo: grain's shuffle takes long, a millisecond, in a set of 64
STREAMS = 8  # rows in a step
CAPTION = "a small boat with a white sail under a bright blue sky; several houses stand behind the harbour wall"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.input_pipeline", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rows", type=int, default=128, help="rows to time, of 8 images each")
    rows = parser.parse_args().rows
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    print(f"{cores} cores; JPEG files of {SIZE[0]} x {SIZE[1]} to rows of 8 images, 224 x 224.\n")
    print("| | images per second | per second of a core's work |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = write_photos(folder)
        processor = tiny_tokenizer_processor(folder)
        print(f"| Pillow alone, one thread | {plain_pillow(files)} |")
        for workers in (0, 1, 2):
            label = f"{workers} worker{'s' * (workers > 1)}" if workers else "0 workers (threads)"
            print(f"| {label} | {pipeline(folder, processor, workers, rows)} |", flush=True)


def write_photos(folder: Path) -> list[Path]:
    """JPEG files and their metadata.jsonl."""
    photo = Image.fromarray(data.astronaut()).resize(SIZE)
    files = [folder / f"{number}.jpg" for number in range(PHOTOS)]
    for number, file in enumerate(files):
        Image.fromarray(np.roll(np.asarray(photo), number, axis=1)).save(file, quality=90)
    records = [{"file_name": file.name, "text": CAPTION} for file in files] * EPOCH
    (folder / "metadata.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return files


def tiny_tokenizer_processor(folder: Path) -> IdeficsProcessor:
    """The published image processor, with the tests' tokenizer."""
    save_tiny_tokenizer(folder / "tokenizer")
    return IdeficsProcessor(IdeficsImageProcessor(), IdeficsTokenizer.from_pretrained(folder / "tokenizer"))


def plain_pillow(files: list[Path]) -> str:
    def decode() -> Iterator[np.ndarray]:
        for file in cycle(files):
            with open_image(file) as image:
                yield np.asarray(image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))

    return speeds(decode(), 256, 1)


def pipeline(folder: Path, processor: IdeficsProcessor, workers: int, rows: int) -> str:
    """Rows are taken as soon as they are there."""
    config = DataConfig(train=(str(folder),), workers=workers)
    made = training_rows(config, processor, seed=0, streams=STREAMS, mine=range(STREAMS))
    with closing(made):
        for row in islice(made, 4 * STREAMS):  # the processes have started, and what was made ahead is used up
            assert row.image_attention_mask.any(axis=0).all()
        return speeds(made, rows, config.max_images)


def speeds(made: Iterator[Any], count: int, images: int) -> str:
    """Cells of the table: images per second, and per second that a core worked in this process or its children."""
    start, start_work = time.perf_counter(), core_seconds()
    for _ in range(count):
        next(made)
    seconds, work = time.perf_counter() - start, core_seconds() - start_work
    return f"{count * images / seconds:.0f} | {count * images / work:.0f}"


def core_seconds() -> float:
    """User and system time of this process and its children so far (on Linux; elsewhere of this process)."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        stat = Path(f"/proc/{child.pid}/stat")
        if stat.exists():
            fields = stat.read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


if __name__ == "__main__":
    main()
