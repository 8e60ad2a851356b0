"""A small LLaMA-like tokenizer, the same on every machine: what the tests read and write text with.

As LLaMA's: byte-fallback BPE, spaces as `▁`, one `▁` put before each stretch of text between special tokens (the
"legacy" rule), newline only as the byte piece `<0x0A>`. The pieces are in LLaMA's order: 3 control pieces, 256 bytes,
the merges, the single characters; then the added tokens, from id `VOCAB_SIZE` on.
"""

import json
import struct
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np

VOCAB_SIZE = 512
FAKE_TOKEN_ID = VOCAB_SIZE
IMAGE_TOKEN_ID = VOCAB_SIZE + 1
END_OF_UTTERANCE_ID = VOCAB_SIZE + 2

TEXT = """
User: What is in this image? Assistant: This picture depicts a cat, and the cat is sitting on a red chair.
User: Describe this image. Assistant: An image of two dogs. And who is that? Which of the images shows a person?
Question: How many people are in the photo? Answer: There are three people walking along the street in the rain.
Instruction: provide an answer to the question. Use the image to answer. The best answer is the second one, because
the colours of the water and of the sky are the same in both. What differs from the first image to the last?
Caption: a small boat with a white sail under a bright blue sky; several houses stand behind the harbour wall.
"""
CHARACTERS = ["▁", *map(chr, range(33, 127))]


def pieces() -> tuple[list[str], list[tuple[str, str]]]:
    """The vocabulary in the order of its ids, and the merges in the order of their rank (learnt from TEXT)."""
    controls = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = Counter("▁" + word for word in TEXT.split())
    split = {word: list(word) for word in words}
    merges: list[tuple[str, str]] = []
    while len(controls) + len(merges) + len(CHARACTERS) < VOCAB_SIZE:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(split[word]):
                pairs[pair] += count
        known = {"".join(merge) for merge in merges}  # two merges may not make the same piece: ids would collide
        best = min((pair for pair in pairs if "".join(pair) not in known), key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = {word: merged(symbols, best) for word, symbols in split.items()}
    return [*controls, *("".join(merge) for merge in merges), *CHARACTERS], merges


def learnt_pieces() -> list[tuple[str, float]]:
    """The pieces but the first 259 with sentencepiece's scores."""
    return [(piece, -float(rank)) for rank, piece in enumerate(pieces()[0][259:])]


def random_texts(count: int) -> list[str]:
    """Words that the tiny tokenizer knows and knows in part, spaces, newlines and characters that it does not know."""
    random = np.random.default_rng(3)
    words = [
        " ",
        "  ",
        "\n",
        "the",
        "image",
        " What",
        "thethe",
        "differs",
        "é",
        "猫",
        "😀",
        "e\u0301",
        "▁",
        "\t",
        "0x0A",
    ]
    return ["".join(random.choice(words, random.integers(1, 12))) for _ in range(count)]


def merged(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """`symbols` with each occurrence of `pair` joined, from the left."""
    joined: list[str] = []
    for symbol in symbols:
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return joined


def save_tiny_tokenizer(directory: str | Path, end_of_utterance: bool = True) -> None:
    """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and added_tokens.json into `directory`.

    `end_of_utterance` gives the instruct models' tokenizer (515 ids), without it the base models' (514).
    """
    vocabulary, merges = pieces()
    added = ["<fake_token_around_image>", "<image>"] + ["<end_of_utterance>"] * end_of_utterance
    special = [(id, token) for id, token in enumerate(vocabulary[:3])] + [*enumerate(added, VOCAB_SIZE)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    steps = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id, "content": token, **flags} for id, token in special],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: id for id, piece in enumerate(vocabulary)},
            "merges": [" ".join(merge) for merge in merges],
        },
    }
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    names["additional_special_tokens"] = added
    configuration = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": True,
        "padding_side": "left",
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
        **names,
    }
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": configuration,
        "special_tokens_map.json": names,
        "added_tokens.json": {token: id for id, token in enumerate(added, VOCAB_SIZE)},
    }.items():
        (directory / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def save_sentencepiece(
    path: Path, learnt: list[tuple[str, float]], trainer: bytes = b"", normalizer: bytes = b""
) -> None:
    """Write a sentencepiece model as LLaMA's: `learnt` pieces and scores after the 3 control pieces and the 256 bytes.

    `trainer` and `normalizer` are encoded fields that override LLaMA's: the last of a number counts.
    """
    controls = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    made = controls + [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)] + [(*piece, 1) for piece in learnt]
    fields = [field(1, field(1, text.encode()) + field(2, struct.pack("<f", score), 5) + varint_field(3, kind))
              for text, score, kind in made]  # fmt: skip
    bpe, byte_fallback, vocabulary_size = varint_field(3, 2), varint_field(35, 1), varint_field(4, len(made))
    fields.append(field(2, vocabulary_size + bpe + byte_fallback + trainer))
    identity = field(1, b"identity") + varint_field(3, 1) + varint_field(4, 0) + varint_field(5, 1)
    fields.append(field(3, identity + normalizer))
    path.write_bytes(b"".join(fields))


def field(number: int, value: bytes, wire_type: int = 2) -> bytes:
    """A field of a protocol buffer message whose value is bytes (wire type 2: after their length)."""
    return varint(number << 3 | wire_type) + (varint(len(value)) if wire_type == 2 else b"") + value


def varint_field(number: int, value: int) -> bytes:
    """A field whose value is an integer."""
    return field(number, varint(value), 0)


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)
