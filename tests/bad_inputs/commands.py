"""Commands whose options, streams' content or places no program can use."""

import os

from tests.bad_inputs.case import Case

MODEL = ("--model", "{checkpoint}")
GENERATE = ("generate", *MODEL, "--prompt", "Hello.")
CHAT = ("chat", *MODEL)
EVAL = ("eval", "jsonl", *MODEL, "--data", "{d}/none.jsonl", "--out", "{d}/out")
CONVERT = ("convert", "{checkpoint}", "{d}/out")
HOSTS = (*GENERATE, "--mesh", "data=-1")


def without_permission(folder):
    """A file where the output's directory would be; root may write everywhere else."""
    folder.write("file", "")


CASES = [
    Case("a seed of 31 digits", (*GENERATE, "--seed", "1" + "0" * 30), "--seed: '10+' must be a whole number from 0"),
    Case("a seed below zero", (*GENERATE, "--seed", "-1"), "--seed: '-1' must be a whole number from 0 to 4294967295"),
    Case("a seed of evaluation", (*EVAL, "--seed", "1" + "0" * 30), "--seed: .* must be a whole number"),
    Case("tokens without end", (*GENERATE, "--max-new-tokens", "1" + "0" * 30), "--max-new-tokens: .* whole number, 1"),
    Case(
        "tokens of a chat", (*CHAT, "--max-new-tokens", "0"), "--max-new-tokens: '0' must be a whole number, 1 or more"
    ),
    Case("tokens with a point", (*GENERATE, "--max-new-tokens", "2.5"), "--max-new-tokens: '2.5' must be a whole"),
    Case("least above most", (*GENERATE, "--min-new-tokens", "101"), "--min-new-tokens is 101, more than --max-new"),
    Case(
        "least above most, chat", (*CHAT, "--min-new-tokens", "999"), "min_new_tokens is 999, above max_new_tokens=256"
    ),
    Case("least below zero", (*GENERATE, "--min-new-tokens", "-1"), "--min-new-tokens: '-1' must be a whole number, 0"),
    Case(
        "5,000 beams", (*GENERATE, "--num-beams", "5000"), "--num-beams: '5000' must be a whole number from 1 to 1000"
    ),
    Case("no beams in evaluation", (*EVAL, "--num-beams", "0"), "--num-beams: '0' must be a whole number from 1"),
    Case("top-k below zero", (*GENERATE, "--top-k", "-3"), "--top-k: '-3' must be a whole number, 0 or more"),
    Case("top-p of zero", (*GENERATE, "--top-p", "0"), "--top-p: '0' must be a number above 0, at most 1"),
    Case(
        "top-p that is no number", (*GENERATE, "--top-p", "nan"), "--top-p: 'nan' must be a number above 0, at most 1"
    ),
    Case("min-p above one", (*GENERATE, "--min-p", "1.5"), "--min-p: '1.5' must be a number from 0 to 1"),
    Case("temperature nan", (*GENERATE, "--temperature", "nan"), "--temperature: 'nan' must be a number from 0"),
    Case("temperature inf", (*CHAT, "--temperature", "inf"), "--temperature: 'inf' must be a number from 0"),
    Case(
        "repetition nan",
        (*GENERATE, "--repetition-penalty", "nan"),
        "--repetition-penalty: 'nan' must be a number above",
    ),
    Case(
        "length penalty nan",
        (*GENERATE, "--length-penalty", "nan"),
        "--length-penalty: 'nan' must be a number from -10",
    ),
    Case(
        "length penalty 1e308", (*EVAL, "--length-penalty", "1e308"), "--length-penalty: '1e308' must be a number from"
    ),
    Case(
        "no answers", (*GENERATE, "--num-return-sequences", "0"), "--num-return-sequences: '0' must be a whole number"
    ),
    Case("a share of two", (*EVAL, "--max-bad", "2"), "--max-bad: '2' must be a number from 0 to 1"),
    Case("shots of 31 digits", (*EVAL, "--shots", "1" + "0" * 30), "--shots: .* must be whole numbers with commas"),
    Case(
        "prompt that is not UTF-8",
        ("generate", *MODEL, "--prompt", os.fsdecode(b"a\xff")),
        "character 2 .* is not UTF-8",
    ),
    Case(
        "stop string that is not UTF-8", (*GENERATE, "--stop", os.fsdecode(b"\xff")), "--stop: character 1 .* not UTF-8"
    ),
    Case(
        "input that is not UTF-8", ("generate", *MODEL, "--prompt", "-"), "Standard input is not UTF-8", stdin=b"a\xffb"
    ),
    Case(
        "messages not UTF-8", ("generate", *MODEL, "--messages", "-"), "Standard input is not UTF-8", stdin=b'["\xff"]'
    ),
    Case(
        "a file of messages that is not UTF-8",
        ("generate", *MODEL, "--messages", "{d}/m.json"),
        "m.json is not JSON: it is not UTF-8",
        files=lambda folder: folder.write("m.json", b'["\xff"]'),
    ),
    Case("messages in a directory", ("generate", *MODEL, "--messages", "{d}"), "is a directory"),
    Case("nested messages", ("generate", *MODEL, "--messages", "-"), "is not JSON", stdin=b"[" * 100_000),
    Case("a line of chat that is not UTF-8", CHAT, "Line 1 of standard input is not UTF-8", stdin=b"\xff\n"),
    Case("port 0", (*HOSTS, "--coordinator", "localhost:0"), "--coordinator: 'localhost:0' must be HOST:PORT"),
    Case("port 99999", (*HOSTS, "--coordinator", "localhost:99999"), "must be HOST:PORT, with a port from 1 to 65535"),
    Case("no port", (*CONVERT, "--coordinator", "localhost"), "--coordinator: 'localhost' must be HOST:PORT"),
    Case("no processes", (*HOSTS, "--processes", "0"), "--processes: '0' must be a whole number, 1 or more"),
    Case(
        "no time to wait", (*CONVERT, "--coordinator-timeout", "0"), "--coordinator-timeout: '0' must be a whole number"
    ),
    Case("shards of infinity", (*CONVERT, "--max-shard-size", "infGB"), "'infGB' is not a size"),
    Case("shards nan", (*CONVERT, "--max-shard-size", "nan"), "'nan' is not a size"),
    Case("output below a file", ("convert", "{checkpoint}", "{d}/file/out"), "file", files=without_permission),
    Case(
        "an option of no command", ("train", "--nonsense", "3", "--out", "{d}/out"), "Unrecognized options: --nonsense"
    ),
    Case("steps that are no number", ("train", "--steps", "many", "--out", "{d}/out"), "many"),
    Case("training without a place", ("train", "--steps", "3"), "out"),
]
