"""Every kind of source, from real files."""

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from idefics_jax.data.records import open_sources
from idefics_jax.data.sources import data_url
from idefics_jax.processing.images import load_image

COLOURS = ["red", "green", "blue"]


def jpeg(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(buffer, "png")
    return buffer.getvalue()


def write_lines(path: Path, records: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def one(spec: Any) -> Any:
    (source,) = open_sources([str(spec)])
    return pickle.loads(pickle.dumps(source))  # as a worker gets it


def test_a_folder_with_metadata(tmp_path: Path):
    folder = write_lines(
        tmp_path / "cats" / "metadata.jsonl", [{"file_name": "a.jpg", "text": "A"}, {"text": "B"}]
    ).parent
    source = one(folder)
    assert [source[0], source[1]] == [{"file_name": "a.jpg", "text": "A"}, {"text": "B"}]
    assert source.folder == folder
    assert source.describe(1) == f"{folder}/metadata.jsonl line 2"


def test_lines_are_found_past_blank_ones_and_without_a_last_newline(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "é猫"}\n\n  \r\n{"text": "2"}\r\nnonsense\n[1]\n'.encode() + b"[" * 100_000)
    source = one(path)
    assert len(source) == 5
    assert [source[0]["text"], source[1]["text"]] == ["é猫", "2"]
    assert source.describe(1) == f"{path} line 4"
    for bad in (2, 4):
        with pytest.raises(ValueError, match="it is not valid JSON: "):
            source[bad]
    with pytest.raises(ValueError, match="it is a JSON list, not an object with fields"):
        source[3]


def test_a_tar_shard_groups_the_files_of_a_sample(tmp_path: Path):
    members = {
        "d/001.jpg": jpeg("red"),
        "d/001.txt": b"rot",
        "002.0.png": jpeg("green"),
        "002.1.png": jpeg("blue"),
        "002.json": b'{"question": "Which?", "answer": "both"}',
        "003.json": b"{",
        "004.txt": b"\xff",
    }
    source = one(write_tar(tmp_path / "a.tar", members))
    assert len(source) == 4
    assert source[0]["text"] == "rot"
    assert load_image(source[0]["images"][0]).getpixel((0, 0)) == (255, 0, 0)
    assert source[1]["answer"] == "both"
    assert [load_image(url).getpixel((0, 0))[2] for url in source[1]["images"]] == [0, 255]
    assert source.describe(0) == f"{tmp_path}/a.tar sample d/001"
    for bad in (2, 3):
        with pytest.raises(ValueError):
            source[bad]


def test_a_tar_that_is_none_or_ends_early(tmp_path: Path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"nonsense" * 100)
    with pytest.raises(ValueError, match=r"a\.tar is not an uncompressed tar archive"):
        open_sources([str(path)])
    write_tar(path, {"1.txt": b"one" * 1000})
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"ends in the middle of it|is damaged"):
        one(path)[0]


def test_array_records(tmp_path: Path):
    path = tmp_path / "a.array_record"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for colour in COLOURS:
        writer.write(json.dumps({"text": colour, "images": [data_url(jpeg(colour))]}).encode())
    writer.close()
    source = one(path)
    assert [source[number]["text"] for number in range(len(source))] == COLOURS
    assert load_image(source[2]["images"][0]).getpixel((0, 0)) == (0, 0, 255)
    path.write_bytes(b"nonsense" * 100)
    with pytest.raises(ValueError, match="is not an array_record file"):
        open_sources([str(path)])


def test_a_saved_dataset(tmp_path: Path):
    images = [Image.new("RGB", (8, 6), colour) for colour in COLOURS]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=COLOURS),
            "images": datasets.List(datasets.Image()),
        }
    )
    dataset = datasets.Dataset.from_dict(
        {"image": images, "label": [0, 1, 2], "images": [images[:2], images[1:], []]}, features=features
    )
    dataset.save_to_disk(str(tmp_path / "saved"))
    source = one(tmp_path / "saved")
    assert source[1]["label"] == "green"
    assert load_image(source[1]["image"]).getpixel((0, 0)) == (0, 128, 0)
    assert [len(source[number]["images"]) for number in range(3)] == [2, 2, 0]
    assert load_image(source[1]["images"][1]).getpixel((0, 0)) == (0, 0, 255)
    datasets.DatasetDict({"train": dataset}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(ValueError, match=r"holds several splits; give one of them, as in .*splits/train"):
        open_sources([str(tmp_path / "splits")])


def test_globs_and_weights(tmp_path: Path):
    for name in "bac":
        write_lines(tmp_path / f"{name}.jsonl", [{"text": name}])
    write_lines(tmp_path / "x=1.jsonl", [{"text": "x"}])
    assert [source[0]["text"] for source in open_sources([f"{tmp_path}/[abc].jsonl"])] == ["a", "b", "c"]
    spec, other = f"{tmp_path}/[ab].jsonl=0.25", f"{tmp_path}/c.jsonl=3"
    assert [source.mixture for source in open_sources([spec, other])] == [(spec, 0.25)] * 2 + [(other, 3.0)]
    assert one(tmp_path / "x=1.jsonl").mixture is None
    with pytest.raises(ValueError, match=r"c\.jsonl has no weight but others have"):
        open_sources([spec, f"{tmp_path}/c.jsonl"])
    for weight in ("0", "-1", "nan", "inf", "much", ""):
        with pytest.raises(ValueError, match=r"The weight in .*; give a positive number, as in .*a\.jsonl=0\.3"):
            open_sources([f"{tmp_path}/a.jsonl={weight}"])


def test_what_cannot_be_opened(tmp_path: Path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "a.zip").write_text("a")
    cases = {
        f"{tmp_path}/none.jsonl": (FileNotFoundError, r"There is no .*none\.jsonl; give a folder with metadata\.jsonl"),
        f"{tmp_path}/*.tar": (FileNotFoundError, r"No file matches .*\*\.tar; give"),
        f"{tmp_path}/empty.jsonl": (ValueError, r"empty\.jsonl holds no records; leave it out"),
        f"{tmp_path}/a.zip": (ValueError, r"a\.zip is of no kind that is known; give"),
        str(tmp_path): (ValueError, r"The folder .* has no metadata\.jsonl; give"),
    }
    for spec, (kind, message) in cases.items():
        with pytest.raises(kind, match=message):
            open_sources([spec])
    with pytest.raises(ValueError, match="There is no data"):
        open_sources([])
