"""A LLaMA `tokenizer.model` (sentencepiece) as the equivalent contents of a `tokenizer.json`.

Neither `sentencepiece` nor `protobuf` is needed: the file is one protocol buffer of which nine fields matter.
"""

import struct
from collections.abc import Iterator
from typing import Any

from idefics_jax.utils.paths import MAX_JSON, AnyPath, read_regular

# Numbers from sentencepiece's `sentencepiece_model.proto`.
PIECES, TRAINER, NORMALIZER = 1, 2, 3  # fields of ModelProto
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # ModelProto.SentencePiece.Type
BPE = 2  # TrainerSpec.ModelType

SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
# What LLaMA does around BPE: each stretch of text between special tokens gets a space in front, spaces become `▁`; and
# back, with the first space dropped.
LLAMA_STEPS = {
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    },
    "pre_tokenizer": None,
    "decoder": {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    },
}


def read_sentencepiece(path: AnyPath) -> dict[str, Any]:
    """The contents of a `tokenizer.json` that tokenises as the sentencepiece model at `path`.

    Sentencepiece joins, again and again, the neighbours whose joined piece has the highest score (the leftmost of
    equals); BPE with ranked merges does so too when every way of cutting a piece in two is a merge that ranks by the
    piece's score. Of one piece's cuts the one with the longer left part ranks first, as transformers has it.

    Raises:
        ValueError: not a sentencepiece model, or one that is not like LLaMA's: byte-fallback BPE without normalisation.
    """
    try:
        model = list(_fields(read_regular(path, MAX_JSON)))
        pieces = [dict(_fields(value)) for number, value in model if number == PIECES]
        trainer, normalizer = (dict(_fields(dict(model)[number])) for number in (TRAINER, NORMALIZER))
        texts = [piece[1].decode("utf-8") for piece in pieces]
        scores = [struct.unpack("<f", piece.get(2, bytes(4)))[0] for piece in pieces]
    except (LookupError, TypeError, AttributeError, UnicodeDecodeError, struct.error) as error:
        raise ValueError(f"{path} is truncated or not a sentencepiece model; replace the file.") from error
    kinds = [piece.get(3, NORMAL) for piece in pieces]
    expected = {
        "BPE": trainer.get(3) == BPE,
        "256 byte pieces": kinds.count(BYTE) == 256,
        "one unknown piece": kinds.count(UNKNOWN) == 1,
        "no user-defined or unused pieces": set(kinds) <= {NORMAL, UNKNOWN, CONTROL, BYTE},
        "pieces of at most 1,000 characters": max(map(len, texts)) <= 1000,
        "no character map": not normalizer.get(2),
        "add_dummy_prefix": normalizer.get(3, 1) == 1,
        "remove_extra_whitespaces off": normalizer.get(4, 1) == 0,
        "escape_whitespaces": normalizer.get(5, 1) == 1,
    }
    if missing := [name for name, holds in expected.items() if not holds]:
        raise ValueError(f"{path} is not like LLaMA's (expected: {', '.join(missing)}); give a tokenizer.json instead.")
    ids = {text: id for id, (text, kind) in enumerate(zip(texts, kinds, strict=True)) if kind == NORMAL}
    cuts = sorted(
        (-scores[id], -cut, id)
        for text, id in ids.items()
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    )
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": id, "content": texts[id], **SPECIAL} for id, kind in enumerate(kinds) if kind in (UNKNOWN, CONTROL)
        ],
        **LLAMA_STEPS,
        "post_processor": None,
        "model": {
            "type": "BPE",
            "unk_token": texts[kinds.index(UNKNOWN)],
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {text: id for id, text in enumerate(texts)},
            "merges": [[texts[id][:-negative], texts[id][-negative:]] for _, negative, id in cuts],
        },
    }


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protocol buffer message, in order: number and value (an int, or bytes not yet interpreted)."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire_type = divmod(tag, 8)
        if wire_type == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        length = {1: 8, 2: None, 5: 4}[wire_type]
        if length is None:
            length, position = _varint(message, position)
        if position + length > len(message):
            raise IndexError("the message ends early")
        yield number, message[position : position + length]
        position += length


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """The integer that starts at `position`, in groups of seven bits, lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = message[position]
        position, value, shift = position + 1, value | (byte & 127) << shift, shift + 7
        if byte < 128:
            return value, position
