"""Rows: what is in them, what waits, and that a stream goes on from any of them."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest

from idefics_jax.processing.processor import image_mask
from tests.support.tiny_processor import tiny_processor
from tests.support.tiny_tokenizer import FAKE_TOKEN_ID, IMAGE_TOKEN_ID
from train.config import DataConfig
from train.data.examples import Example
from train.data.packing import HOPELESS, POOL, BadRecord, Row, Stream, make_row, pack_state, unpack_state
from train.data.report import BadRecords, PackingReport

BOS, EOS = 1, 2
SIZE = tiny_processor().image_processor.image_size
CONFIG = DataConfig(sequence_length=20, max_images=3)


def document(length: int, images: int = 0, fill: int = 300) -> Example:
    """`length` ids in all."""
    ids = [BOS, *[FAKE_TOKEN_ID, IMAGE_TOKEN_ID] * images, *[fill] * (length - 2 - 2 * images), EOS]
    return Example(ids, [True] * len(ids), [f"{fill}/{number}" for number in range(images)])


def decode(item: tuple[int, Example]) -> np.ndarray | BadRecord:
    """Pixels that tell the document; those of every ninth are damaged."""
    number, example = item
    if example.images and number % 9 == 4:
        return BadRecord(f"{number}: damaged")
    return np.full((len(example.images), SIZE, SIZE, 3), number % 251, np.uint8)


def read(number: int) -> Example:
    if number % 7 == 5:
        raise BadRecord(f"{number}: no text")
    random = np.random.default_rng(number)
    images = int(random.integers(0, 4))
    return document(int(random.integers(2 + 2 * images, 21)), images, 100 + number % 200)


def stream(config: DataConfig = CONFIG, **arguments) -> Stream:
    return Stream(read, decode, tiny_processor(), config, **arguments)


def assert_same_rows(ours: Iterator[Row], theirs: Iterator[Row], count: int) -> None:
    for one, other in zip(islice(ours, count), islice(theirs, count), strict=True):
        for field, value, expected in zip(Row._fields, one, other, strict=True):
            np.testing.assert_array_equal(value, expected, err_msg=field)
            assert type(value) is type(expected)


def documents_in(row: Row) -> list[list[int]]:
    return [row.input_ids[row.segment_ids == n].tolist() for n in range(1, row.segment_ids.max() + 1)]


def test_a_row():
    examples = [document(6, 1, 300), document(4, 0, 301), document(8, 2, 302)]
    examples[1] = examples[1]._replace(learnt=[False, False, True, True])
    pixels = [np.full((len(example.images), SIZE, SIZE, 3), n, np.uint8) for n, example in enumerate(examples, 1)]
    row = make_row(examples, pixels, tiny_processor(), CONFIG)
    ids = [id for example in examples for id in example.ids]
    assert row.input_ids.tolist() == [*ids, 0, 0]
    assert row.labels.tolist() == [*ids[:6], -100, -100, *ids[8:], -100, -100]
    assert row.segment_ids.tolist() == [1] * 6 + [2] * 4 + [3] * 8 + [0] * 2
    assert row.position_ids.tolist() == [*range(18), 1, 1]
    assert row.pixel_values[:, 0, 0, 0].tolist() == [1, 3, 3]
    expected = np.zeros((20, 3), int)
    expected[2:6, 0] = 1
    expected[12:14, 1] = 1  # the fake token after the first image of the third document still sees it
    expected[14:18, 2] = 1
    np.testing.assert_array_equal(row.image_attention_mask, expected)
    np.testing.assert_array_equal(row.image_attention_mask, image_mask(row.input_ids[None], IMAGE_TOKEN_ID, EOS, 3)[0])
    dtypes = [array.dtype.name for array in row if isinstance(array, np.ndarray)]
    assert dtypes == ["int32"] * 4 + ["int8", "uint8", "int32"]


def test_documents_apart():
    examples = [document(6, 1), document(4)]
    pixels = [np.zeros((len(example.images), SIZE, SIZE, 3), np.uint8) for example in examples]
    config = DataConfig(sequence_length=12, max_images=1, segment_masks=True)
    row = make_row(examples, pixels, tiny_processor(), config)
    assert row.position_ids.tolist() == [*range(6), *range(4), 1, 1]
    assert row.labels.tolist() == [-100, *examples[0].ids[1:], -100, *examples[1].ids[1:], -100, -100]


def test_every_good_document_comes_once_and_whole():
    count = 200
    rows = list(stream(end=count))
    good = [n for n in range(count) if n % 7 != 5 and not isinstance(decode((n, read(n))), BadRecord)]
    packed = sorted(ids for row in rows for ids in documents_in(row))
    assert packed == sorted(read(number).ids for number in good)
    assert sum(row.read for row in rows) == count
    bad = [line for row in rows for line in row.bad]
    assert len(bad) == count - len(good) == len(set(bad))
    for row in rows:
        assert row.image_attention_mask.any(axis=0).sum() == (row.input_ids == IMAGE_TOKEN_ID).sum() <= 3
    full = np.mean([(row.segment_ids > 0).mean() for row in rows[:-POOL]])
    assert full > 0.8


def test_the_oldest_goes_first():
    number = 0
    for row in islice(stream(end=None), 50):
        pending = unpack_state(row.state, 1)[1]
        assert len(pending) == POOL
        assert pending == sorted(pending)
        assert pending[0] >= number
        number = pending[0]
    assert number > 50


def test_one_document_a_row():
    config = DataConfig(sequence_length=20, max_images=3, pack=False)
    rows = list(islice(stream(config), 20))
    assert all(row.segment_ids.max() == 1 for row in rows)
    good = [n for n in range(60) if n % 7 != 5 and not isinstance(decode((n, read(n))), BadRecord)]
    assert [documents_in(row)[0] for row in rows] == [read(number).ids for number in good[:20]]


@pytest.mark.parametrize("pack", [True, False])
def test_a_stream_goes_on_from_any_row(pack: bool):
    config = DataConfig(sequence_length=20, max_images=3, pack=pack)
    far = 2**33 + 3
    for first, step in ((0, 1), (2, 5), (far, 5)):
        rows = list(islice(stream(config, first=first, step=step), 30))
        for place in (0, 1, 7, 19):
            again = stream(config, first=first, step=step, state=rows[place].state)
            assert_same_rows(iter(rows[place + 1 :]), again, 10)


def test_states():
    state = pack_state(2**40 + 17, [2**40 + 2, 2**40 + 12], 5)
    assert state.dtype == np.int32
    assert unpack_state(state, 5) == (2**40 + 17, [2**40 + 2, 2**40 + 12])
    with pytest.raises(ValueError, match="has 2 words"):
        unpack_state(state[:2], 5)


def test_hopeless_records_stop_the_stream():
    def none(number: int) -> Example:
        raise BadRecord(f"record {number}: bad")

    def damaged(item: tuple[int, Example]) -> BadRecord:
        return BadRecord(f"record {item[0]}: damaged")

    arguments = (tiny_processor(), CONFIG)
    with pytest.raises(RuntimeError, match=f"{HOPELESS} records could not be used .*; the last: record 999: bad"):
        next(Stream(none, decode, *arguments))
    with pytest.raises(RuntimeError, match=r"1000 records could not be used .*; the last: record \d+: damaged"):
        next(Stream(lambda number: document(6, 1), damaged, *arguments))
    with pytest.raises(RuntimeError, match="None of 3 records could be used; the last: record 2: bad"):
        next(Stream(none, decode, *arguments, end=3))


def test_reports(tmp_path):
    report, records = PackingReport(), BadRecords(tmp_path / "run", 0.5)
    rows = list(stream(end=100))
    for row in rows:
        report.add(row)
        records.add(row)
    bad = [line for row in rows for line in row.bad]
    assert (tmp_path / "run" / "skipped.log").read_text().splitlines() == bad
    assert str(report).startswith(f"{len(rows)} rows of ")
    assert str(report).endswith(f"100 records read, {len(bad)} skipped")
    filled = sum(int((row.segment_ids > 0).sum()) for row in rows)
    assert f"{1 - filled / (20 * len(rows)):.1%} of the tokens are padding" in str(report)
    strict = BadRecords(tmp_path, 0.01)

    def run() -> None:
        for row in islice(stream(), 200):
            strict.add(row)

    with pytest.raises(RuntimeError, match=r"\d+ of \d+ records could not be used, more than --data.max-bad 0.01"):
        run()
    assert strict.read > 100


def test_one_bad_record_never_ends_a_run(tmp_path):
    """Each epoch of 50 records reads it again; a second one counts both, and 0 allows none."""
    row = next(stream())
    bad = [row._replace(read=50, bad=(f"record {number}: damaged",)) for number in (7, 8)]
    records = BadRecords(tmp_path, 0.01)
    for _ in range(20):
        records.add(bad[0])
    with pytest.raises(RuntimeError, match=r"21 of 1,050 records could not be used"):
        records.add(bad[1])
    none = BadRecords(tmp_path, 0.0)
    none.add(bad[0])
    none.add(bad[0])
    with pytest.raises(RuntimeError, match=r"3 of 150 records could not be used"):
        none.add(bad[0])
