"""Records are read alike by training and evaluation, and nothing that a record says is lost without a word."""

import csv
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from idefics_jax.data import records
from idefics_jax.data.fields import answer_of, answers_of, images_of, text_of
from idefics_jax.data.forms import document_of, messages_of, split_template
from idefics_jax.data.records import check_columns, open_source, open_sources
from idefics_jax.data.text import parse_json
from idefics_jax.evaluation.tasks import read_data
from idefics_jax.processing.images import load_image

QUESTION, ANSWER = "What is it?", "a ball"


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(path)
    return path


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    """A table of records as JSONL, CSV or parquet, by its name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


def trained(folder: Path, template: str | None = None) -> list[tuple[str, list[str], str]]:
    """Question, images and answer of each record, as training reads it."""
    (source,) = open_sources([str(folder)])
    check_columns([source], template)
    found = []
    for number in range(len(source)):
        question, answer = messages_of(source[number], source.folder, template) or []
        text = "".join(part["text"] for part in question["content"] if part["type"] == "text")
        images = [str(part["image"]) for part in question["content"] if part["type"] == "image"]
        found.append((text, images, answer["content"][0]["text"]))
    return found


def asked(folder: Path, task: str = "jsonl") -> list[tuple[str, list[str], str]]:
    data = read_data(task, [str(folder)], None, None, None)
    assert data.problems == []
    return [(example.question, list(example.images), example.answer) for example in data.examples]


@pytest.mark.parametrize("file", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
@pytest.mark.parametrize("column", ["file_name", "image", "file_names", "images"])
def test_the_folder_that_was_trained_on_is_asked_with_its_images(tmp_path, file, column):
    rows = [{column: f"{n}.png", "question": f'What, "{n}"?\nSay', "answer": f"ball, {n}"} for n in range(3)]
    folder = write(tmp_path / "photos", file, rows).parent
    expected = [(row["question"], [str(folder / row[column])], row["answer"]) for row in rows]
    assert trained(folder) == expected
    assert asked(folder) == expected
    assert asked(folder / file) == expected


def test_parquet_with_images_in_it(tmp_path):
    content = picture(tmp_path / "1.png").read_bytes()
    rows = [{"image": {"bytes": content, "path": "1.png"}, "question": QUESTION, "answers": ["a", "b", "b"]}]
    path = write(tmp_path, "a.parquet", rows)
    for question, images, answer in trained(path) + asked(path):
        assert (question, answer) == (QUESTION, "b")
        assert load_image(images[0]).size == (8, 8)


def test_texts_and_images_are_captions(tmp_path):
    rows = [{"file_name": "1.png", "text": "A ball."}, {"file_name": "2.png", "text": "<image> A box."}]
    folder = write(tmp_path, "metadata.jsonl", rows).parent
    data = read_data("captions", [str(folder)], None, None, None)
    assert [(example.images, example.references) for example in data.examples] == [
        ((str(folder / "1.png"),), ("A ball.",)),
        ((str(folder / "2.png"),), ("A box.",)),
    ]
    assert "eval captions" in read_data("jsonl", [str(folder)], None, None, None).problems[0].text


def test_messages_are_asked(tmp_path):
    turn = {"role": "user", "content": "Who?", "images": ["1.png"]}
    rows = [{"messages": [turn, {"role": "assistant", "content": "Tom"}]}]
    path = write(tmp_path, "a.jsonl", rows)
    assert trained(path) == asked(path) == [("Who?", [str(tmp_path / "1.png")], "Tom")]


@pytest.mark.parametrize(
    ("record", "images"),
    [
        ({"image": "1.png", "images": []}, ["1.png"]),
        ({"image": "1.png", "images": None}, ["1.png"]),
        ({"image": None, "file_name": "1.png"}, ["1.png"]),
        ({"image": "", "file_name": "1.png", "images": [], "file_names": None}, ["1.png"]),
        ({"image": "1.png", "images": ["1.png"]}, ["1.png"]),
        ({"image": "./1.png", "file_name": "1.png"}, ["1.png"]),
        ({"images": ["1.png", "2.png"], "image": []}, ["1.png", "2.png"]),
        ({"image": [], "images": []}, []),
        ({}, []),
    ],
)
def test_the_first_column_that_names_images(tmp_path, record, images):
    assert images_of(record, tmp_path) == [tmp_path / name for name in images]
    path = write(tmp_path, "a.jsonl", [record | {"question": QUESTION, "answer": ANSWER}])
    assert trained(path) == asked(path) == [(QUESTION, [str(tmp_path / name) for name in images], ANSWER)]


@pytest.mark.parametrize(
    "record",
    [
        {"image": "1.png", "images": ["2.png"]},
        {"image": "1.png", "file_name": "2.png"},
        {"image": "1.png", "images": ["1.png", "2.png"]},
        {"images": ["1.png", None]},
        {"images": ["1.png", ""]},
        {"image": {"path": "1.png"}},
        {"image": 3},
        {"image": True},
    ],
)
def test_images_that_contradict_are_refused(tmp_path, record):
    with pytest.raises(ValueError, match=r"different images|one of its images is"):
        images_of(record, tmp_path)
    path = write(tmp_path, "a.jsonl", [record | {"question": QUESTION, "answer": ANSWER}])
    (problem,) = read_data("jsonl", [str(path)], None, None, None).problems
    assert problem.kind == "malformed record"


@pytest.mark.parametrize("column", ["image_path", "img", "picture", "meta"])
@pytest.mark.parametrize("value", ["1.png", "photos/1.JPEG", "http://a.b/c.webp?x=1", "here"])
def test_images_under_another_name_are_refused(tmp_path, column, value):
    picture(tmp_path / "x.png").rename(tmp_path / "here")
    path = write(tmp_path, "a.jsonl", [{column: value, "question": QUESTION, "answer": ANSWER}] * 2)
    message = f'has no image, but its column "{column}" names one'
    with pytest.raises(ValueError, match=message):
        trained(path)
    assert message in read_data("jsonl", [str(path)], None, None, None).problems[0].text


def test_columns_that_are_not_read_are_said_once(tmp_path, capsys):
    rows = [{"image": "1.png", "question": QUESTION, "answer": ANSWER, "hint": "round", "empty": None}]
    path = write(tmp_path, "a.jsonl", rows)
    for _ in range(2):
        trained(path)
    assert capsys.readouterr().err == f"{path}: its column is not read: hint.\n"
    records._said.clear()
    check_columns(open_sources([str(path)]), "{hint} {answer}")
    assert capsys.readouterr().err == f"{path}: its column is not read: question.\n"
    text = write(tmp_path, "b.jsonl", [{"text": "No picture.", "source": "book.txt"}])
    check_columns(open_sources([str(text)]), None)
    assert "source" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "text"),
    [('"3"', "3"), ("3", "3"), ("3.0", "3.0"), ("0.50", "0.50"), ("1e3", "1e3"), ("-2", "-2"), ('"NaN"', "NaN")],
)
def test_a_number_is_its_text(tmp_path, line, text):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"question": "{QUESTION}", "answer": {line}}}\n')
    assert trained(path) == asked(path) == [(QUESTION, [], text)]
    assert document_of(parse_json(f'{{"a": {line}}}'), tmp_path, "{a}").asked == text


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "true", "false", "null", '""', "{}"])
def test_what_is_no_text_is_refused(tmp_path, value):
    path = tmp_path / "a.jsonl"
    for column in ("answer", "answers"):
        path.write_text(f'{{"question": "{QUESTION}", "{column}": {value}}}\n')
        with pytest.raises(ValueError, match='"answer"'):
            trained(path)
        assert len(read_data("jsonl", [str(path)], None, None, None).problems) == 1
    with pytest.raises(ValueError):
        document_of(parse_json(f'{{"text": {value}}}'), tmp_path, None)
    if value != '""':
        with pytest.raises(ValueError, match="cannot be filled"):
            document_of(parse_json(f'{{"a": {value}, "b": 1}}'), tmp_path, "{b} {a}")


def test_annotators_numbers_count():
    record = {"answers": [{"answer": 3}] * 9 + [{"answer": "4"}]}
    assert answers_of(record) == ("3",) * 9 + ("4",)
    assert answer_of(record) == "3"
    assert answer_of(record | {"answer": "4"}) == "4"
    with pytest.raises(ValueError, match='its "answer" \'5\' is not among its "answers"'):
        answers_of(record | {"answer": "5"})
    for bad in (float("nan"), True, [1]):
        with pytest.raises(ValueError, match='its "answer" is'):
            answers_of({"answers": [bad]})
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        text_of("\ud800", "text")


@pytest.mark.parametrize("swap", [False, True])
def test_ids_of_text_and_of_number_are_joined(tmp_path, swap):
    kinds = (int, str) if not swap else (str, int)
    answers = [{"answer": 3}] * 9 + [{"answer": "4"}]
    content = (
        {"questions": [{"question_id": kinds[0](1), "image_id": 7, "question": QUESTION}]},
        {"annotations": [{"question_id": kinds[1](1), "answers": answers}]},
    )
    files = [tmp_path / "q.json", tmp_path / "a.json"]
    for file, one in zip(files, content, strict=True):
        file.write_bytes(b"\xef\xbb\xbf" + json.dumps(one).encode())
    data = read_data("vqa", list(map(str, files)), None, None, None)
    assert data.problems == []
    assert (data.examples[0].id, data.examples[0].answer) == (kinds[0](1), "3")
    captions = {"images": [{"id": kinds[0](1)}], "annotations": [{"image_id": kinds[1](1), "caption": "A ball."}]}
    files[0].write_text(json.dumps(captions))
    (example,) = read_data("captions", [str(files[0])], None, None, None).examples
    assert example.references == ("A ball.",)


GOOD = '{"question": "é?", "answer": "1"}'


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf%s\n%s\n", b"\xef\xbb\xbf%s\r\n%s\r\n", b"%s\n\n\xef\xbb\xbf%s"])
def test_a_byte_order_mark_and_line_ends(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content % (GOOD.encode(), GOOD.encode()))
    assert trained(path) == asked(path) == [("é?", [], "1")] * 2
    table = tmp_path / "a.csv"
    table.write_bytes(b"\xef\xbb\xbf" + "question;answer\r\né?;1\r\n".encode())
    assert trained(table) == asked(table) == [("é?", [], "1")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", GOOD.encode("utf-16"), "is UTF-16"),
        ("a.jsonl", GOOD.encode("utf-16-le"), "is UTF-16"),
        ("a.csv", "question,answer\n".encode("utf-16"), "is UTF-16"),
        ("a.jsonl", f"[{GOOD}, {GOOD}]".encode(), "is one JSON list"),
        ("a.jsonl", f"[\n{GOOD},\n{GOOD}\n]".encode(), "is one JSON list"),
        ("a.jsonl", json.dumps(json.loads(GOOD), indent=1).encode(), "has a record over several lines"),
        ("a.csv", b"text,text\na,b\n", 'two columns "text"'),
        ("a.csv", b'text\n"never ends\n', "is not CSV"),
        ("a.csv", b"text\nx\xff\n", r"a\.csv line 2: it is not UTF-8"),
        ("a.parquet", b"PAR1 nonsense", "is not a parquet file"),
        ("a.tar", b"nonsense", "is not an uncompressed tar archive"),
    ],
)
def test_files_that_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{GOOD},", "ends with a comma"),
        ('{"question": "a", "answer": "b",}', "a comma before a closing bracket"),
        ('{"question": "a", "answers": ["b",]}', "a comma before a closing bracket"),
        (GOOD + GOOD, "more than one value"),
        ('{"image": "a.png", "image": "b.png"}', '"image" twice'),
        ('{"question": ' + "[" * 100_000, "nested too deep"),
        ("[1]", "not an object"),
    ],
)
def test_lines_that_are_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text(f"{GOOD}\n{line}\n")
    with pytest.raises(ValueError, match=message):
        open_source(path)[1]
    data = read_data("jsonl", [str(path)], None, None, None)
    assert (len(data.examples), len(data.problems)) == (1, 1)
    assert message in data.problems[0].text


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="named pipe"):
        open_source(tmp_path / "a.jsonl")


def shard(path: Path, *members: tuple[str, bytes | str]) -> Path:
    """A tar whose members are files, or hard links given by what they lead to."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.LNKTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [("22.05.png", b"?"), ("22.05.txt", b"a"), ("22.06.png", b"?"), ("22.06.txt", b"b")],
            r"22\.05\.txt and 22",
        ),
        ([("1.png", b"?"), ("1.png", b"?"), ("1.txt", b"a")], r"1\.png twice"),
        ([("1.en.txt", b"a"), ("1.de.txt", b"b"), ("1.png", b"?")], r"1\.en\.txt and 1\.de\.txt"),
        ([("1.txt", b"a"), ("1.TXT", b"b")], r"1\.txt and 1\.TXT"),
        ([("1.a.json", b"{}"), ("1.b.json", b"{}")], r"1\.a\.json and 1\.b\.json"),
        ([("1.txt", b"a"), ("1.npy", b"?")], r"1\.npy, which belongs to no field"),
        ([("1.txt", b"a"), ("README", b"?")], "README, which belongs to no field"),
        ([("1.txt", b"a"), (".png", b"?")], r"\.png, which belongs to no field"),
        ([("1.txt", b"a"), ("1.png", "other.png")], r"1\.png, which leads to no file"),
    ],
)
def test_shards_that_would_lose_something(tmp_path, members, message):
    with pytest.raises(ValueError, match=message):
        open_source(shard(tmp_path / "a.tar", *members))


def test_shards_that_lose_nothing(tmp_path):
    content = picture(tmp_path / "1.png").read_bytes()
    members: list[tuple[str, bytes | str]] = [("._1.png", b"?")]
    suffixes = ["avif", "jfif", "jpe", "ppm", "PNG", "heic", "jxl"]
    for number, suffix in enumerate(suffixes):
        members += [(f"{number}.{suffix}", content), (f"{number}.txt", b"a")]
    source = open_source(shard(tmp_path / "a.tar", *members, ("9.png", "0.avif"), ("9.txt", b"b")))
    assert [len(source[number]["images"]) for number in range(len(source))] == [1] * (len(suffixes) + 1)
    assert load_image(source[len(suffixes)]["images"][0]).size == (8, 8)


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        ("{question} {answer_type} {answer}", ("{question} {answer_type} ", "{answer}")),
        ("{{answer}} {question} {answer}", ("{{answer}} {question} ", "{answer}")),
        ("{question} {answers[0]}!", ("{question} ", "{answers[0]}!")),
        ("{answers_text} {answer!s:>3}", ("{answers_text} ", "{answer!s:>3}")),
        ("{{x}} {name}}}", ("{{x}} ", "{name}}}")),
        ("a {answer_type} b", ("a ", "{answer_type} b")),
    ],
)
def test_the_answer_of_a_template(template, parts):
    assert split_template(template) == parts


def test_a_filled_template(tmp_path):
    record = {"question": "Who?", "answers": ["Tom", "Tim"], "answer_type": "name"}
    document = document_of(record, tmp_path, "{{{question}}} ({answer_type}) {answers[0]}")
    assert (document.given, document.asked) == ("{Who?} (name) ", "Tom")
    with pytest.raises(ValueError, match='its "answers" is a list'):
        document_of(record, tmp_path, "{question} {answers}")


def test_vqa_names_jsonl(tmp_path):
    path = write(tmp_path, "a.jsonl", [{"question": QUESTION, "answer": ANSWER}] * 2)
    (tmp_path / "a.json").write_bytes(path.read_bytes())
    for name in ("a.jsonl", "a.json"):
        with pytest.raises(ValueError, match=r"eval jsonl --data .* reads it"):
            read_data("vqa", [str(tmp_path / name)], None, None, None)
