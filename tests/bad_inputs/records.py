"""Records, messages and tables of every kind that cannot be read as they are meant."""

import json
import os
import tarfile
from io import BytesIO
from typing import Any

from tests.bad_inputs.case import Case, Folder

TRAIN = ("train", "--model", "{checkpoint}", "--out", "{d}/out", "--steps", "1", "--data.train")
EVAL = ("--model", "{checkpoint}", "--out", "{d}/out", "--zero-shot", "none", "--data")
MESSAGES = ("generate", "--model", "{checkpoint}", "--messages")
GOOD = {"question": "Who?", "answer": "Tom"}


def lines(*records: Any):
    return lambda folder: folder.lines("a.jsonl", *records)


def text(name: str, content: str | bytes):
    return lambda folder: folder.write(name, content)


def shard(*names: str):
    def write(folder: Folder) -> None:
        with tarfile.open(folder.path / "a.tar", "w") as tar:
            for name in names:
                tar.addfile(tarfile.TarInfo(name), BytesIO())

    return write


def message(**fields: Any):
    return lambda folder: folder.write("m.json", [{"role": "user", "content": "Who?", **fields}])


def train(name: str, files: Any, says: str, source: str = "a.jsonl", *more: str) -> Case:
    return Case(f"train: {name}", (*TRAIN, f"{{d}}/{source}", *more), says, files)


def ask(name: str, files: Any, says: str, source: str = "a.jsonl", task: str = "jsonl") -> Case:
    return Case(f"eval: {name}", ("eval", task, *EVAL, f"{{d}}/{source}"), says, files)


def chat(name: str, files: Any, says: str) -> Case:
    return Case(f"messages: {name}", (*MESSAGES, "{d}/m.json"), says, files)


CASES = [
    train("image under another name", lines(GOOD | {"img": "1.png"}), 'its column "img" names one'),
    train("template without a field", lines(GOOD), "template has no field", "a.jsonl", "--data.template", "x"),
    train("template that is none", lines(GOOD), "is not a template", "a.jsonl", "--data.template", "{x"),
    train("two texts of one key", shard("22.05.txt", "22.06.txt"), r"22\.05\.txt and 22\.06\.txt", "a.tar"),
    train("a name twice in a shard", shard("1.txt", "1.txt"), r"holds 1\.txt twice", "a.tar"),
    train("member of no field", shard("1.txt", "1.npy"), r"1\.npy, which belongs to no field", "a.tar"),
    train("UTF-16", text("a.jsonl", json.dumps(GOOD).encode("utf-16")), "is UTF-16"),
    train("one JSON list", text("a.jsonl", json.dumps([GOOD, GOOD])), "is one JSON list"),
    train("records over several lines", text("a.jsonl", json.dumps(GOOD, indent=1)), "record over several lines"),
    train("CSV with a column twice", text("a.csv", "text,text\na,b\n"), 'two columns "text"', "a.csv"),
    train("CSV without its end", text("a.csv", 'text\n"a\n'), "is not CSV", "a.csv"),
    train("CSV that is no UTF-8", text("a.csv", b"text\n\xff\n"), "it is not UTF-8", "a.csv"),
    train("damaged parquet", text("a.parquet", b"PAR1"), "is not a parquet file", "a.parquet"),
    train("named pipe", lambda folder: os.mkfifo(folder.path / "a.jsonl"), "is a named pipe"),
    train("no records", text("a.jsonl", "\n\n"), "holds no records"),
    train("folder without records", lambda folder: folder.image("f/1.png"), r"has no metadata\.jsonl", "f"),
    ask("image under another name", lines(GOOD | {"image_path": "1.png"}), 'its column "image_path" names one'),
    ask("columns that contradict", lines(GOOD | {"image": "1.png", "images": ["2.png"]}), "name different images"),
    ask("answer that is NaN", lines(GOOD | {"answer": float("nan")}), 'its "answer" is nan'),
    ask("answer that is infinite", lines(GOOD | {"answers": [float("inf")]}), 'its "answer" is inf'),
    ask("answer that is true", lines(GOOD | {"answer": True}), 'its "answer" is true, not a text'),
    ask("answer that is null", lines(GOOD | {"answer": None}), "it has no answer"),
    ask("column twice in a record", text("a.jsonl", '{"image": "1", "image": "2"}'), '"image" twice'),
    ask("comma at a line's end", text("a.jsonl", f"{json.dumps(GOOD)},\n"), "ends with a comma"),
    ask("comma before a bracket", text("a.jsonl", '{"question": "a",}'), "a comma before a closing bracket"),
    ask("nested too deep", text("a.jsonl", '{"question": ' + "[" * 100_000), "nested too deep"),
    ask("half a surrogate pair", lines(GOOD | {"question": "\ud800"}), "half of a surrogate pair"),
    ask("no UTF-8", text("a.jsonl", b'{"question": "\xff"}'), "it is not UTF-8"),
    ask("UTF-16", text("a.jsonl", json.dumps(GOOD).encode("utf-16")), "is UTF-16"),
    ask("named pipe", lambda folder: os.mkfifo(folder.path / "a.jsonl"), "is a named pipe"),
    ask("captions as questions", lines({"file_name": "1.png", "text": "A"}), "eval captions reads"),
    ask("a conversation", lines({"messages": [{"role": "user", "content": "a"}] * 3}), "not one question"),
    ask("JSONL as VQA", lines(GOOD, GOOD), "eval jsonl --data", task="vqa"),
    ask("VQA as JSONL", lines({"questions": [GOOD]}), "eval vqa or captions reads it"),
    chat("unknown field", message(pictures=["1.png"]), "has the field 'pictures'"),
    chat("images that contradict", message(images=["1.png"], image="2.png"), "another .image"),
    chat("role that is a list", message(role=["user"]), r"has the role \['user'\]"),
    chat("half a surrogate pair", message(content="\ud800"), "half of a surrogate pair"),
    chat("nested too deep", text("m.json", "[" * 100_000), "nested too deep"),
    chat("UTF-16", text("m.json", "[]".encode("utf-16")), "is UTF-16"),
]
