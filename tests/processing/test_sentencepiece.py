"""A sentencepiece model is read as sentencepiece reads it, and one that is damaged or unlike LLaMA's is refused."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from idefics_jax.processing.tokenizer import IdeficsTokenizer
from tests.support.tiny_tokenizer import field, learnt_pieces, pieces, random_texts, save_sentencepiece, varint_field


def joined_by_score(text: str, scores: dict[str, float], ids: dict[str, int]) -> list[int]:
    """Sentencepiece's BPE as its paper says it: join the neighbours of the best score, leftmost first, until none."""
    symbols = list("▁" + text.replace(" ", "▁"))
    while True:
        joins = [(-scores[a + b], place) for place, (a, b) in enumerate(pairwise(symbols)) if a + b in scores]
        if not joins:
            break
        place = min(joins)[1]
        symbols[place : place + 2] = ["".join(symbols[place : place + 2])]
    known = [[symbol] if symbol in ids else [f"<0x{byte:02X}>" for byte in symbol.encode()] for symbol in symbols]
    return [ids[piece] for run in known for piece in run]


def test_a_sentencepiece_model_is_read_as_it_was_meant(tmp_path):
    learnt = learnt_pieces()
    save_sentencepiece(tmp_path / "tokenizer.model", learnt)
    tokenizer = IdeficsTokenizer.from_pretrained(tmp_path)
    ids = {piece: id for id, piece in enumerate(pieces()[0])}
    for text in random_texts(300):
        assert tokenizer.encode(text) == joined_by_score(text, dict(learnt), ids)
        assert tokenizer.decode(tokenizer.encode(text)) == text.replace("▁", " ")


def message(folder: Path) -> str:
    """The error that loading `folder` gives."""
    with pytest.raises(ValueError) as caught:
        IdeficsTokenizer.from_pretrained(folder)
    return str(caught.value)


@pytest.mark.torch
def test_a_sentencepiece_model_is_read_as_sentencepiece_reads_it(tmp_path):
    """Also with a vocabulary whose pieces can be cut in many ways."""
    sentencepiece = pytest.importorskip("sentencepiece")
    random = np.random.default_rng(4)
    letters = ["▁", "a", "b", "c"]
    dense = {"".join(random.choice(letters, random.integers(2, 6))) for _ in range(200)} | set(letters)
    ranked = [(piece, -float(rank)) for rank, piece in enumerate(random.permutation(sorted(dense)).tolist())]
    dense_texts = ["".join(random.choice([" ", "a", "b", "c"], 20)) for _ in range(300)]
    for learnt, texts in [(learnt_pieces(), random_texts(300)), (ranked, dense_texts)]:
        save_sentencepiece(tmp_path / "tokenizer.model", learnt)
        tokenizer = IdeficsTokenizer.from_pretrained(tmp_path)
        theirs = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
        assert [tokenizer.encode(text) for text in texts] == theirs.encode(texts)


def test_a_damaged_sentencepiece_model_is_named(tmp_path):
    path = tmp_path / "tokenizer.model"
    save_sentencepiece(path, learnt_pieces())
    whole = path.read_bytes()
    for damaged in (b"", b"just words", whole[:-1], whole[: len(whole) // 2], b"\x00" * 99):
        path.write_bytes(damaged)
        assert message(tmp_path) == f"{path} is truncated or not a sentencepiece model; replace the file."


@pytest.mark.parametrize(
    ("trainer", "normalizer", "expected"),
    [
        (varint_field(3, 1), b"", "BPE"),
        (b"", field(2, b"charsmap"), "no character map"),
        (b"", varint_field(3, 0), "add_dummy_prefix"),
        (b"", varint_field(4, 1), "remove_extra_whitespaces off"),
        (b"", varint_field(5, 0), "escape_whitespaces"),
    ],
)
def test_a_sentencepiece_model_unlike_llamas_is_refused(tmp_path, trainer, normalizer, expected):
    path = tmp_path / "tokenizer.model"
    save_sentencepiece(path, learnt_pieces(), trainer, normalizer)
    assert message(tmp_path) == f"{path} is not like LLaMA's (expected: {expected}); give a tokenizer.json instead."
