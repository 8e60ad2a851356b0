"""Evaluations that cannot be, and meshes and memory that do not fit."""

import json

from tests.bad_inputs.case import Case, Folder

EVAL = ("eval", "jsonl", "--model", "{checkpoint}", "--data", "{d}/data.jsonl", "--out", "{d}/out")
ONE = ("generate", "--model", "{checkpoint}", "--prompt", "Hello.")
BARE = ("--zero-shot", "none")


def data(folder: Folder) -> None:
    folder.lines("data.jsonl", {"question": "What is this?", "answer": "a ball"})


def captions(content: object):
    return lambda folder: folder.write("captions.json", json.dumps(content))


def prompts(content: object):
    def make(folder: Folder) -> None:
        data(folder)
        file = folder.copy() / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"evaluation_prompts": content}))

    return make


def task(name: str, *files: str) -> tuple[str, ...]:
    return ("eval", name, "--model", "{checkpoint}", "--out", "{d}/out", "--data", *files)


OWN = ("eval", "jsonl", "--model", "{d}/model", "--data", "{d}/data.jsonl", "--out", "{d}/out")
CASES = [
    Case("no support for shots", (*EVAL, "--shots", "4"), "4 shots need a support set", data),
    Case("no support for zero shots", EVAL, "--zero-shot none", data),
    Case("unknown prompt", (*EVAL, "--prompt", "haiku"), "no prompt 'haiku'", data),
    Case("shots that are words", (*EVAL, "--shots", "few"), "whole numbers", data),
    Case("shots below zero", (*EVAL, "--shots=-1"), "whole numbers", data),
    Case("beams of zero", (*EVAL, "--num-beams", "0"), "whole number", data),
    Case("batch of zero", (*EVAL, "--batch-size", "0"), "whole number", data),
    Case("share above one", (*EVAL, "--max-bad", "2"), "from 0 to 1|0 and 1", data),
    Case("template without answer", (*EVAL, *BARE, "--example", "<image>{question}"), "name {answer} once", data),
    Case("template with two answers", (*EVAL, *BARE, "--example", "{answer}{answer}"), "name {answer} once", data),
    Case("template with an open brace", (*EVAL, *BARE, "--example", "{answer"), "cannot be read", data),
    Case("positive that is no candidate", (*EVAL, *BARE, "--positive", "maybe"), "no candidate", data),
    Case("no such data", task("jsonl", "{d}/none.jsonl"), "none.jsonl"),
    Case("empty data", (*EVAL, *BARE), "no examples|no records", lambda folder: folder.write("data.jsonl", "")),
    Case("captions of nothing", task("captions", "{d}/captions.json"), "images|data", captions({})),
    Case("captions that are a list", task("captions", "{d}/captions.json"), "images|data", captions([])),
    Case(
        "captions that are no JSON",
        task("captions", "{d}/captions.json"),
        "not JSON",
        lambda folder: folder.write("captions.json", "{"),
    ),
    Case("classes of nothing", task("classification", "{d}/none"), "none"),
    Case("three files", task("vqa", "{d}/a.json", "{d}/b.json", "{d}/c.json"), "3 were given"),
    Case("prompts that are a list", (*OWN, *BARE), "evaluation_prompts", prompts([])),
    Case("prompts without stop words", (*OWN, *BARE), "evaluation_prompts", prompts({"vqa": {"prefix": ""}})),
    Case("prompts that are null", (*OWN, *BARE), "evaluation_prompts", prompts({"vqa": None})),
    Case("mesh of three heads", (*ONE, "--mesh", "tensor=3"), "does not use 8 devices"),
    Case("mesh of more heads than there are", (*ONE, "--mesh", "tensor=8"), r"tensor can be 1, 2, 4"),
    Case("mesh that leaves devices", (*ONE, "--mesh", "fsdp=2"), "does not use 8 devices"),
    Case("mesh for eval", (*EVAL, *BARE, "--mesh", "tensor=8"), r"tensor can be 1, 2, 4", data),
    Case("mesh for chat", ("chat", "--model", "{checkpoint}", "--mesh", "tensor=8"), r"tensor can be 1, 2, 4"),
    Case("mesh of an unknown axis", (*ONE, "--mesh", "model=2"), "no axis 'model'"),
    Case("mesh of two rests", (*ONE, "--mesh", "fsdp=-1,tensor=-1"), "only one axis"),
    Case("mesh twice", (*ONE, "--mesh", "fsdp=2,fsdp=4"), "given twice"),
]
