"""The same rows, however many threads, processes and hosts make them, and from wherever they go on."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from idefics_jax.data.records import open_sources
from tests.support.tiny_processor import tiny_processor
from train.config import DataConfig
from train.data.order import documents
from train.data.packing import Row
from train.data.pipeline import evaluation_rows, questions, training_rows

COUNT = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captions of one to three images; the second is missing and the third's is damaged; the fourth is too long."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    records = []
    for number in range(COUNT):
        names = [f"{number}-{image}.png" for image in range(1 + number % 3)]
        for name in names:
            Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8)).save(folder / name)
        records.append({"file_names": names, "text": f"image {number} " + "the " * int(random.integers(0, 20))})
    (folder / "1-0.png").unlink()
    (folder / "2-0.png").write_bytes((folder / "2-0.png").read_bytes()[:100])
    records[3]["text"] = "the " * 200
    (folder / "metadata.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def config(folder: Path, **settings: Any) -> DataConfig:
    return DataConfig(train=(str(folder),), eval=(str(folder),), sequence_length=64, max_images=4, **settings)


def rows(
    folder: Path, count: int, mine: tuple[int, ...] = (0, 1, 2, 3), states: Any = None, **settings: Any
) -> list[Row]:
    made = training_rows(config(folder, **settings), tiny_processor(), seed=3, streams=4, mine=mine, states=states)
    with closing(made):
        return list(islice(made, count))


def assert_same(ours: list[Row], theirs: list[Row]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        for field, value, expected in zip(Row._fields, one, other, strict=True):
            np.testing.assert_array_equal(value, expected, err_msg=field)
            assert type(value) is type(expected)


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[Row]:
    return rows(folder, 48)


def test_rows(expected: list[Row]):
    bad = {line for row in expected for line in row.bad}
    assert len(bad) == 3
    assert any("metadata.jsonl line 2: The image file" in line and "does not exist" in line for line in bad)
    assert any("metadata.jsonl line 3: " in line and "damaged" in line for line in bad)
    assert any("metadata.jsonl line 4: too long: " in line for line in bad)
    assert max(row.segment_ids.max() for row in expected) > 1
    assert all(row.pixel_values[row.image_attention_mask.any(axis=0)].any(axis=(1, 2, 3)).all() for row in expected)


def test_hosts_share_the_streams(folder: Path, expected: list[Row]):
    first, second = rows(folder, 24, (0, 1)), rows(folder, 24, (2, 3))
    together = [row for n in range(0, 24, 2) for row in (first[n], first[n + 1], second[n], second[n + 1])]
    assert_same(together, expected)


def test_a_restart_goes_on(folder: Path, expected: list[Row]):
    for done in (4, 20):
        states = {stream: expected[done - 4 + stream].state for stream in range(4)}
        assert_same(rows(folder, 12, states=states), expected[done : done + 12])


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_processes_make_the_same_rows(folder: Path, expected: list[Row], workers: int):
    """1, and 2 because 3 does not divide the streams; those that go on from a state too."""
    states = {stream: expected[4 + stream].state for stream in range(4)}
    assert_same(rows(folder, 12, states=states, workers=workers), expected[8:20])
    assert not multiprocessing.active_children()


def test_without_augmentation_only_the_pixels_differ(folder: Path, expected: list[Row]):
    plain = rows(folder, 48, augment=False)
    assert any((row.pixel_values != other.pixel_values).any() for row, other in zip(expected, plain, strict=True))
    assert_same(
        [row._replace(pixel_values=other.pixel_values) for row, other in zip(plain, expected, strict=True)], expected
    )


def test_a_worker_that_dies_is_not_silent(folder: Path):
    made = training_rows(config(folder, workers=2), tiny_processor(), seed=3, streams=2, mine=[0, 1])
    with closing(made):
        next(made)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="terminated unexpectedly"):
            list(made)


PARENT = """
import multiprocessing, sys, time
from pathlib import Path
from tests.train.test_data_pipeline import config, tiny_processor, training_rows
if __name__ == "__main__":
    settings = config(Path(sys.argv[1]), workers=int(sys.argv[3]))
    made = training_rows(settings, tiny_processor(), seed=3, streams=2, mine=[0, 1])
    next(made), next(made)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    if sys.argv[2] == "wait":
        time.sleep(100)
"""


@pytest.mark.parametrize(("end", "count"), [("killed", 2), pytest.param("exits", 1, marks=pytest.mark.slow)])
def test_workers_end_with_their_parent(folder: Path, tmp_path: Path, end: str, count: int):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    root = Path(__file__).parents[2]
    command = [sys.executable, str(script), str(folder), "wait" if end == "killed" else "exit", str(count)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == count
        if end == "killed":
            parent.kill()
        parent.wait(30)
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def lines(folder: Path, name: str, count: int) -> str:
    (folder / name).write_text("".join(json.dumps({"text": f"{name} {n}"}) + "\n" for n in range(count)))
    return str(folder / name)


def taken(order: Any, start: int, stop: int) -> list[tuple[int, int]]:
    return [order[number] for number in range(start, stop)]


def test_an_epoch_has_each_record_once(tmp_path: Path):
    sources = open_sources([lines(tmp_path, "a.jsonl", 7), lines(tmp_path, "b.jsonl", 30)])
    order = documents(sources, 1, shuffle=True)
    everything = [(0, n) for n in range(7)] + [(1, n) for n in range(30)]
    epochs = [taken(order, 37 * epoch, 37 * epoch + 37) for epoch in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [everything] * 3
    assert len({tuple(epoch) for epoch in [*epochs, everything]}) == 4
    assert epochs[0] == taken(documents(sources, 1, shuffle=True), 0, 37)
    assert epochs[0] != taken(documents(sources, 2, shuffle=True), 0, 37)
    assert taken(documents(sources, 1, shuffle=False), 0, 37) == everything
    assert len(documents(sources, 1, shuffle=False)) == 37
    assert taken(documents(open_sources([lines(tmp_path, "c.jsonl", 1)]), 1, shuffle=True), 0, 3) == [(0, 0)] * 3


def test_weights_mix_sources(tmp_path: Path):
    specs = [f"{lines(tmp_path, 'a.jsonl', 10)}=3", f"{lines(tmp_path, 'b.jsonl', 50)}=1"]
    drawn = taken(documents(open_sources(specs), 1, shuffle=True), 0, 200)
    assert Counter(source for source, _ in drawn) == {0: 150, 1: 50}
    assert Counter(drawn)[0, 0] == 15
    assert {drawn.count((1, n)) for n in range(50)} == {1}


def test_evaluation_is_in_order_and_ends(folder: Path):
    made = list(evaluation_rows(config(folder, pack=False), tiny_processor()))
    assert len(made) == COUNT - 3
    processor = tiny_processor()
    assert processor.decode(made[1].input_ids, skip_special_tokens=True).strip().startswith("image 4")
    with Image.open(folder / "4-1.png") as image:
        np.testing.assert_array_equal(
            made[1].pixel_values[1], np.asarray(image.resize((2, 2), Image.Resampling.BICUBIC))
        )
    assert_same(list(evaluation_rows(config(folder, pack=False), processor, 5)), made[:5])
    packed = list(evaluation_rows(config(folder), processor))
    assert sum(row.segment_ids.max() for row in packed) == COUNT - 3


def test_questions(folder: Path):
    found = questions(config(folder), tiny_processor(), 5)
    assert [question.answer.split()[1] for question in found] == ["0", "the", "4", "5", "6"], (
        "with images that are read"
    )
    assert found[2].images == [folder / "4-0.png", folder / "4-1.png"]


def test_no_usable_records(tmp_path: Path):
    settings = DataConfig(
        train=(lines(tmp_path, "a.jsonl", 500),), eval=(lines(tmp_path, "b.jsonl", 2),), sequence_length=2
    )
    made = training_rows(settings, tiny_processor(), seed=0, streams=2, mine=[1])
    with pytest.raises(RuntimeError, match=r"1000 records could not be used .*; the last: .* line \d+: too long"):
        next(made)
    with pytest.raises(RuntimeError, match=r"None of 2 records could be used; the last: .*b\.jsonl line 2: too long"):
        next(evaluation_rows(settings, tiny_processor()))


def test_mistakes_show_at_once(folder: Path):
    with pytest.raises(FileNotFoundError, match="There is no nowhere"):
        training_rows(DataConfig(train=("nowhere",)), tiny_processor(), seed=0, streams=1, mine=[0])
    with pytest.raises(ValueError, match=r"This host's streams \[4\] must be some of the 4"):
        training_rows(config(folder), tiny_processor(), seed=0, streams=4, mine=[4])
