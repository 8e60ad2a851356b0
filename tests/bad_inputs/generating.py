"""Prompts, chat messages and options of choosing tokens that no command answers."""

import json

from tests.bad_inputs.case import Case

MODEL = ("--model", "{checkpoint}")
ONE = ("generate", *MODEL, "--prompt", "Hello.")
CHAT = ("chat", *MODEL)
NUMBER = "must be a whole number"


def option(name: str, value: str, says: str) -> Case:
    """An option of `generate` with a value that it cannot have."""
    return Case(f"{name} {value[:12]}", (*ONE, f"{name}={value}"), f"{name}: .* must be|{says}")


def messages(name: str, content: object, says: str) -> Case:
    """A conversation on standard input that is none."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Case(name, ("generate", *MODEL, "--messages", "-"), says, stdin=text)


def user(content: object) -> dict:
    return {"role": "user", "content": content}


CASES = [
    option("--max-new-tokens", "1" + "0" * 30, f"max_new_tokens is 10*; it {NUMBER}"),
    option("--max-new-tokens", "0", f"max_new_tokens is 0; it {NUMBER}"),
    option("--max-new-tokens", "-5", f"max_new_tokens is -5; it {NUMBER}"),
    option("--max-new-tokens", "2.5", "max-new-tokens"),
    option("--min-new-tokens", "-1", f"min_new_tokens is -1; it {NUMBER}"),
    option("--min-new-tokens", "101", "--min-new-tokens is 101, more than --max-new-tokens, 100"),
    option("--temperature", "nan", "temperature is nan; it must be above 0"),
    option("--temperature", "-1", r"temperature is -1\.0; it must be above 0"),
    option("--temperature", "inf", "temperature is inf; it must be above 0"),
    option("--top-k", "-3", "top_k is -3; it must be a whole number, 0 or more"),
    option("--top-p", "0", r"top_p is 0\.0; it must be above 0 and at most 1"),
    option("--top-p", "2", r"top_p is 2\.0; it must be above 0 and at most 1"),
    option("--min-p", "-0.5", r"min_p is -0\.5; it must be between 0 and 1"),
    option("--repetition-penalty", "0", r"repetition_penalty is 0\.0; it must be above 0"),
    option("--repetition-penalty", "nan", "repetition_penalty is nan; it must be above 0"),
    option("--num-beams", "5000", "num_beams is 5000; it must be a whole number from 1 to 256"),
    option("--num-beams", "-1", "num_beams is -1; it must be a whole number from 1 to 256"),
    option("--num-return-sequences", "0", f"num_return_sequences is 0; it {NUMBER}"),
    option("--length-penalty", "nan", "length_penalty is nan; it must be between -10 and 10"),
    option("--length-penalty", "1e308", r"length_penalty is 1e\+308; it must be between -10 and 10"),
    option("--seed", "-1", f"seed is -1; it {NUMBER}"),
    option("--seed", "1" + "0" * 30, f"seed is 10*; it {NUMBER}"),
    option("--stop", "", "A stop string is empty"),
    option("--stop", "x" * 1_000_000, "stop_strings holds 1,000,000 characters; together they can have at most 2,000"),
    Case("a million answers", (*ONE, "--temperature", "1", "--num-return-sequences", "1000000"), "must be"),
    Case("more answers than beams", (*ONE, "--num-beams", "2", "--num-return-sequences", "3"), "only 2 beams"),
    Case("several greedy answers", (*ONE, "--num-return-sequences", "3"), "Without drawing there is one answer"),
    Case("drawn beams", (*ONE, "--num-beams", "2", "--top-p", "0.5"), "--num-beams takes the likeliest tokens"),
    Case("many stop strings", (*ONE, *("--stop", "x") * 2_001), "stop_strings holds 2,001 strings"),
    Case("half of a character", ("generate", *MODEL, "--prompt", "a\ud83d"), "is not UTF-8"),
    Case("a long prompt", ("generate", *MODEL, "--prompt", "-"), "20,000,003 characters", stdin=b"a" * 20_000_000),
    Case("an empty prompt", ("generate", *MODEL, "--prompt", ""), "Prompt 0 is empty"),
    Case("no messages", ("generate", *MODEL, "--messages", "-"), "The conversation has no messages", stdin=b"[]"),
    messages(
        "many turns", [user("Hi.")] * 20_000, r"The conversation has 20,000 messages; at most [\d,]+ are possible"
    ),
    messages("a role that is a list", [{"role": ["user"], "content": "Hi."}], r"Message 0 has the role \['user'\]"),
    messages("half of a character in a message", [user("a\ud83d")], "half of a surrogate pair"),
    messages("a part that is a number", [user([5])], "Part 0 of message 0 is neither a text nor an image"),
    Case("chat: temperature", (*CHAT, "--temperature", "nan"), "temperature.* must be"),
    Case("chat: limit", (*CHAT, "--max-new-tokens", "0"), "max-new-tokens.* must be"),
]
