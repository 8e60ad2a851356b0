"""LLaMA's tokenisation, from every form its files come in: the original's ids, and text that can be streamed."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from idefics_jax.processing.tokenizer import IdeficsTokenizer, TextStreamer
from tests.support.tiny_tokenizer import (
    VOCAB_SIZE,
    learnt_pieces,
    random_texts,
    save_sentencepiece,
    save_tiny_tokenizer,
)

FAKE, IMAGE = "<fake_token_around_image>", "<image>"
# All pieces of LLaMA's vocabulary that are part of a word of the two-dogs prompt, by id. The score is 259 - id.
# fmt: off
LLAMA_PIECES = {
    260: "▁t", 261: "er", 266: "▁th", 267: "es", 270: "▁d", 273: "an", 275: "is", 288: "▁o", 303: "st", 310: "▁of",
    319: "▁A", 326: "im", 344: "se", 351: "ag", 360: "▁D", 374: "ri", 386: "th", 391: "ist", 424: "ant", 437: "▁do",
    445: "▁this", 468: "og", 474: "▁i", 479: "ge", 482: "age", 501: "▁U", 527: "▁im", 530: "▁An", 593: "nt",
    643: "ser", 655: "ma", 699: "cri", 747: "ib", 827: "wo", 893: "ss", 897: "▁De", 915: "be", 941: "ta", 974: "of",
    1023: "▁two", 1039: "si", 1091: "rib", 1366: "this", 1557: "sc", 1867: "do", 1967: "▁image", 2079: "ista",
    2659: "User", 2726: "▁Des", 2744: "An", 2772: "De", 2887: "As", 2918: "hi", 2946: "ima", 3027: "image", 3174: "gs",
    3252: "▁tw", 4002: "Des", 4803: "▁Use", 4911: "▁User", 5173: "sta", 6382: "▁imag", 7283: "cr", 7516: "tw",
    7588: "scri", 7900: "Ass", 9777: "istan", 9977: "esc", 10184: "two", 10526: "scr", 10783: "▁Us", 11082: "mag",
    11203: "▁dog", 11403: "Use", 12099: "ogs", 13086: "scribe", 13161: "tan", 14411: "stan", 15922: "Us", 18673: "ibe",
    19617: "Desc", 20355: "▁Descri", 22137: "istant", 22880: "his", 26169: "dog", 26361: "▁dogs", 29581: "cribe",
    29871: "▁", 29872: "e", 29873: "t", 29874: "a", 29875: "i", 29876: "n", 29877: "o", 29878: "r", 29879: "s",
    29881: "d", 29882: "h", 29883: "c", 29885: "m", 29887: "g", 29888: "f", 29889: ".", 29890: "b", 29893: "w",
    29901: ":", 29909: "A", 29928: "D", 29965: "U",
}
TWO_DOGS = [
    1, 4911, 29901, 32000, 32001, 32000, 20355, 915, 445, 1967, 29889, 13, 7900, 22137, 29901, 530, 1967, 310, 1023,
    26361, 29889, 13, 2659, 29901, 32000, 32001, 32000, 20355, 915, 445, 1967, 29889, 13, 7900, 22137, 29901,
]
# fmt: on
ADDED = {FAKE: 32000, IMAGE: 32001, "<end_of_utterance>": 32002}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
NEWER_STEPS = {"normalizer": None, "pre_tokenizer": METASPACE}  # what transformers 5 saves


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> list[IdeficsTokenizer]:
    """LLaMA's tokenizer from each of its forms, with only the above pieces; the other ids are taken by nonsense."""
    learnt = [(LLAMA_PIECES.get(id, f"\ue000{id}"), 259.0 - id if id != 29871 else -1e9) for id in range(259, 32000)]
    folder = tmp_path_factory.mktemp("llama")
    save_sentencepiece(folder / "tokenizer.model", learnt)
    (folder / "added_tokens.json").write_text(json.dumps(ADDED))
    forms = [IdeficsTokenizer.from_pretrained(folder)]
    forms[0].save_pretrained(folder / "saved")
    content = json.loads((folder / "saved" / "tokenizer.json").read_text(encoding="utf-8"))
    controls = [token for token in content["added_tokens"] if token["id"] not in ADDED.values()]
    for steps in ({}, NEWER_STEPS):
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": bool(steps), "special": True}
        added = [{"id": id, "content": token, **flags} for token, id in ADDED.items()]
        converted = tmp_path_factory.mktemp("converted")
        (converted / "tokenizer.json").write_text(json.dumps(content | {"added_tokens": controls + added} | steps))
        forms.append(IdeficsTokenizer.from_pretrained(converted))
    return forms


def two_dogs(tokenizer: IdeficsTokenizer) -> list[int]:
    """The ids of the model card's prompt, which a processor has joined."""
    image = FAKE + IMAGE + FAKE
    question = f"User:{image}Describe this image.\nAssistant:"
    return tokenizer.encode(f"<s>{question} An image of two dogs.\n{question}")


def test_the_two_dogs_prompt_of_the_model_card(llama, tmp_path):
    saved = []
    for number, tokenizer in enumerate(llama):
        assert len(tokenizer) == 32003
        assert two_dogs(tokenizer) == TWO_DOGS
        tokenizer.save_pretrained(tmp_path / str(number))
        saved.append({path.name: path.read_bytes() for path in (tmp_path / str(number)).iterdir()})
    assert saved[0] == saved[1] == saved[2]
    config = json.loads(saved[0]["tokenizer_config.json"])
    assert (config["legacy"], config["tokenizer_class"]) == (True, "LlamaTokenizer")
    tokenizer = IdeficsTokenizer.from_pretrained(tmp_path / "0")
    assert two_dogs(tokenizer) == TWO_DOGS
    assert tokenizer.decode(TWO_DOGS, skip_special_tokens=True) == (
        "User: Describe this image.\nAssistant: An image of two dogs.\nUser: Describe this image.\nAssistant:"
    )


@pytest.mark.torch
@pytest.mark.parametrize("legacy", [True, False])
def test_the_two_dogs_prompt_after_transformers_5_saved_the_tokenizer(llama, tmp_path, legacy):
    pytest.importorskip("torch")
    from transformers import AutoTokenizer

    llama[0].save_pretrained(tmp_path / "a")
    AutoTokenizer.from_pretrained(tmp_path / "a", legacy=legacy).save_pretrained(tmp_path / "b")
    steps = json.loads((tmp_path / "b" / "tokenizer.json").read_text())["pre_tokenizer"]
    assert steps == METASPACE | {"prepend_scheme": "always" if legacy else "first"}
    assert two_dogs(IdeficsTokenizer.from_pretrained(tmp_path / "b")) == TWO_DOGS


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> IdeficsTokenizer:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_tokenizer(folder)
    return IdeficsTokenizer.from_pretrained(folder)


def test_spaces_are_the_originals(tiny):
    """Each stretch between special tokens is tokenised as if a space stood before it, however many already do."""
    space, word = tiny.convert_tokens_to_ids(["▁", "▁image"])
    image = VOCAB_SIZE + 1
    assert tiny.encode("image") == [word]
    assert tiny.encode(" image") == [space, word]
    assert tiny.encode("<image>image<image> image") == [image, word, image, space, word]
    assert tiny.encode("<image> <image>") == [image, space, space, image]
    assert tiny.encode("<image><image>") == [image, image]
    assert tiny.encode("\n") == [space, *tiny.convert_tokens_to_ids(["<0x0A>"])]
    assert tiny.encode("") == []


# Files


def test_special_tokens_come_from_any_of_the_files(tmp_path):
    for name, content in {
        "added_tokens.json": {IMAGE: VOCAB_SIZE + 1, FAKE: VOCAB_SIZE},
        "tokenizer_config.json": {
            "added_tokens_decoder": {str(VOCAB_SIZE): {"content": FAKE}, str(VOCAB_SIZE + 1): {"content": IMAGE}}
        },
        "special_tokens_map.json": {"additional_special_tokens": [FAKE, {"content": IMAGE}]},
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        save_sentencepiece(folder / "tokenizer.model", learnt_pieces())
        (folder / name).write_text(json.dumps(content))
        tokenizer = IdeficsTokenizer.from_pretrained(folder)
        assert tokenizer.convert_tokens_to_ids([FAKE, IMAGE]) == [VOCAB_SIZE, VOCAB_SIZE + 1]
        assert tokenizer.decode([VOCAB_SIZE, 262], skip_special_tokens=True) == tokenizer.decode([262])


def test_save_and_load(tmp_path, tiny):
    tiny.save_pretrained(tmp_path)
    loaded = IdeficsTokenizer.from_pretrained(tmp_path)
    pickled = pickle.loads(pickle.dumps(tiny))
    assert len(loaded) == len(pickled) == len(tiny) == VOCAB_SIZE + 3
    for text in [*random_texts(50), "<s>User:<image> hi</s>", "<end_of_utterance>\n"]:
        assert loaded.encode(text) == pickled.encode(text) == tiny.encode(text)
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.unk_token_id, loaded.pad_token_id) == (1, 2, 0, 0)
    assert (loaded.padding_side, loaded.truncation_side) == ("left", "right")


def test_padding_and_truncation_in_the_file_are_not_applied(tmp_path, tiny):
    save_tiny_tokenizer(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 99}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<unk>",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    text = "What is in this image?"
    assert IdeficsTokenizer.from_pretrained(tmp_path).encode(text) == tiny.encode(text)


def test_another_kind_of_tokenizer_is_left_as_it_is(tmp_path):
    save_tiny_tokenizer(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content |= {"normalizer": {"type": "Lowercase"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = IdeficsTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("A") == tokenizer.encode("a") == tokenizer.convert_tokens_to_ids(["a"])


def message(folder: Path, error: type[Exception] = ValueError) -> str:
    """The one line of the error that loading `folder` gives."""
    with pytest.raises(error) as caught:
        IdeficsTokenizer.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_that_are_missing_or_broken_are_named(tmp_path):
    assert message(tmp_path, FileNotFoundError) == f"{tmp_path} has neither tokenizer.json nor tokenizer.model."
    save_tiny_tokenizer(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "added_tokens.json").write_text(json.dumps({FAKE: VOCAB_SIZE, IMAGE: VOCAB_SIZE + 7}))
    assert message(tmp_path) == (
        f"{tmp_path} gives <image> the id {VOCAB_SIZE + 7}, but in its tokenizer it has {VOCAB_SIZE + 1}."
    )
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | {"model": {"type": "BPE", "vocab": 3}}))
    assert message(tmp_path).startswith(f"The tokenizer in {tmp_path} cannot be used: ")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text('{"model": ')
        assert message(tmp_path).startswith(f"{tmp_path / name} is not valid JSON: ")


def test_a_vocabulary_without_llamas_tokens_is_refused(tmp_path):
    save_tiny_tokenizer(tmp_path)
    (tmp_path / "special_tokens_map.json").unlink()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["added_tokens"] = []
    content["model"]["vocab"]["<begin>"] = content["model"]["vocab"].pop("<s>")
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    for name in ("tokenizer_config.json", "added_tokens.json"):
        (tmp_path / name).unlink()
    assert message(tmp_path) == "The tokenizer has no <s> token; use the checkpoint's own tokenizer."
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<begin>"}))
    assert IdeficsTokenizer.from_pretrained(tmp_path).bos_token_id == 1


# Decoding


def test_decode_takes_lists_and_arrays(tiny):
    ids = tiny.encode("<s>What is in this image? 猫</s>")
    assert tiny.decode(ids) == tiny.decode(np.array(ids))
    assert tiny.decode(np.array([ids], np.int32)) == [tiny.decode(ids)]  # as transformers 5
    assert tiny.decode(ids, skip_special_tokens=True) == "What is in this image? 猫"


# Functions that take one or many, and the arguments of transformers' tokenizers


END, END_ID = "<end_of_utterance>", VOCAB_SIZE + 2
ONE_OR_MANY = {
    "a token": lambda t: t.convert_tokens_to_ids(END),
    "tokens": lambda t: t.convert_tokens_to_ids([END, "<s>"]),
    "an id": lambda t: t.convert_ids_to_tokens(END_ID),
    "ids": lambda t: t.convert_ids_to_tokens([300, 2, 301], skip_special_tokens=True),
    "tokenized": lambda t: t.tokenize("What is <image>"),
    "text of an id": lambda t: t.decode(300),
    "text of ids": lambda t: t.decode([300, 301]),
    "text of none": lambda t: t.decode([]),
    "texts of rows": lambda t: t.decode([[300, 301], [302]]),
    "a batch": lambda t: t.batch_decode([[300, 301], [302]]),
    "a batch of one": lambda t: t.batch_decode([300, 301]),
}
CALLS = [
    ("What is this?", {}),
    (["What is", "this?"], {}),
    (["What is this", "x"], {"padding": True}),
    (["What is this", "x"], {"padding": "longest", "padding_side": "right", "pad_to_multiple_of": 8}),
    (["What is this", "x"], {"padding": "max_length", "max_length": 6, "truncation": True}),
    (["What is this", "x"], {"padding": "do_not_pad", "truncation": "do_not_truncate"}),
    (["What is this", "x"], {"max_length": 2}),
    ("What is this", {"max_length": 2, "truncation": "longest_first", "add_special_tokens": False}),
    (["What is this", "x"], {"padding": True, "return_tensors": "np"}),
]


def test_a_string_is_one_token(tiny):
    assert tiny.convert_tokens_to_ids(END) == END_ID
    assert tiny.convert_tokens_to_ids([END]) == [END_ID]
    assert tiny.convert_ids_to_tokens(np.int64(END_ID)) == END
    assert tiny.all_special_ids == [0, 1, 2, *range(VOCAB_SIZE, VOCAB_SIZE + 3)]
    assert repr(tiny).startswith("IdeficsTokenizer(515 tokens; special: <unk>, <s>, </s>, ")


@pytest.mark.torch
def test_one_or_many_as_in_transformers(tiny, tmp_path):
    pytest.importorskip("torch")
    from transformers import AutoTokenizer

    tiny.save_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for name, call in ONE_OR_MANY.items():
        assert call(tiny) == call(theirs), name
    for text, arguments in CALLS:
        ours, expected = tiny(text, **arguments), theirs(text, **arguments)
        assert ours.keys() == {"input_ids", "attention_mask"}
        for name, values in ours.items():
            np.testing.assert_equal(values, expected[name], err_msg=f"{text} {arguments} {name}")


def test_texts_as_arrays(tiny):
    import jax

    arrays = tiny(["What is this", "x"], padding=True, return_tensors="np")
    assert arrays["input_ids"].tolist() == [tiny.encode("What is this"), [0, *tiny.encode("x")]]
    assert arrays["attention_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]
    on_device = tiny("What is this", return_tensors="jax")["input_ids"]
    assert isinstance(on_device, jax.Array)
    assert on_device.tolist() == arrays["input_ids"][:1].tolist()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda t: t.convert_tokens_to_ids("zzz"), "The tokenizer has no zzz token; use the checkpoint's own"),
        (lambda t: t.convert_ids_to_tokens(99999), r"The tokenizer has no id 99999; its ids are 0 to 514\."),
        (lambda t: t.convert_ids_to_tokens(-1), "The tokenizer has no id -1"),
        (lambda t: t.decode("abc"), "decode takes ids, not the text 'abc'"),
        (lambda t: t.decode([1.5]), r"decode takes ids, whole numbers from 0, not \[1.5\]"),
        (lambda t: t.decode([-1]), r"decode takes ids, whole numbers from 0, not \[-1\]"),
        (lambda t: t.encode(5), "The text is 5; it must be a string"),
        (lambda t: t.encode("ab\ud83d"), r"The text is not valid Unicode: character 3 is half of a surrogate pair"),
        (lambda t: t.encode("a" * 20_000_000), "The text has 20,000,000 characters; at most 1,000,000 are possible"),
        (lambda t: t([]), "The batch is empty; give at least one text"),
        (lambda t: t("a", return_tensors="pt"), r'return_tensors="pt" is not made here, .* torch\.from_numpy\(array\)'),
        (lambda t: t("a", return_tensors="xx"), r"return_tensors is 'xx'; it must be \"np\" \(the default\) or"),
        (lambda t: t(["a", "b c d"], return_tensors="np"), "The texts have different lengths; arrays need padding"),
        (lambda t: t("a", pading=True), "The tokenizer does not take pading; did you mean padding?"),
        (lambda t: t("a", text_pair="b"), "The tokenizer does not take text_pair: join the texts"),
    ],
)  # fmt: skip
def test_what_is_neither_text_nor_token(tiny, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(tiny)


@pytest.mark.parametrize("skip", [True, False])
def test_streamed_text_is_the_whole_text(tiny, skip):
    """For likely and random ids: words, whole and broken characters in bytes, special tokens amid them."""
    random = np.random.default_rng(7)
    cat = [3 + byte for byte in "猫é\n".encode()]
    text = tiny.encode("two é 猫 😀 dogs")
    for choices in [range(VOCAB_SIZE + 3), range(3, 259), [*cat, 2, VOCAB_SIZE, 300, 35, 419], text]:
        for _ in range(60):
            ids = random.choice(list(choices), random.integers(0, 30)).tolist()
            prompt = tiny.encode(str(random.choice(["", "<s>User:", "Assistant: ", "<image> a"])))
            streamer = TextStreamer(tiny, prompt, skip)
            streamed = [streamer.put(id) for id in ids] + [streamer.end()]
            assert tiny.decode(prompt, skip) + "".join(streamed) == tiny.decode(prompt + ids, skip)


def test_streamed_text_comes_at_once_and_characters_whole(tiny):
    streamer = TextStreamer(tiny, tiny.encode("<s>User:"))
    ids = tiny.encode("a 猫 in the image")
    assert [streamer.put(id) for id in ids] == [" a", " ", "", "", "", "猫 in", " the", " image"]
    assert streamer.end() == ""


def test_extra_special_tokens_can_be_an_object(tmp_path):
    """As transformers writes them from 4.46 on: names for the tokens, which are no tokens themselves."""
    save_sentencepiece(tmp_path / "tokenizer.model", learnt_pieces())
    extra = {"extra_special_tokens": {"fake_token": FAKE, "image_token": {"content": IMAGE}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(extra))
    tokenizer = IdeficsTokenizer.from_pretrained(tmp_path)
    assert tokenizer.convert_tokens_to_ids([FAKE, IMAGE]) == [VOCAB_SIZE, VOCAB_SIZE + 1]
    assert "image_token" not in tokenizer


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("tokenizer.json", [], "holds a list instead of an object"),
        ("tokenizer.json", {}, "has no model"),
        ("tokenizer.json", {"model": 3}, "model must be an object, but is 3"),
        ("tokenizer.json", {"model": {}, "added_tokens": [5]}, "must be lists of objects"),
        ("tokenizer_config.json", None, "holds null instead of an object"),
        ("tokenizer_config.json", {"bos_token": 5}, "bos_token must be a string or an object, but is 5"),
        ("tokenizer_config.json", {"bos_token": {}}, "bos_token must be a token's text"),
        ("tokenizer_config.json", {"extra_special_tokens": 7}, "extra_special_tokens must be a list or an object"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": "a"}}, "has 'x' for an id"),
        ("special_tokens_map.json", {"additional_special_tokens": [3]}, "additional_special_tokens.0 must be a token"),
        ("added_tokens.json", {"<image>": "five"}, '<image> must be a whole number, but is "five"'),
        ("added_tokens.json", [1], "holds a list instead of an object"),
    ],
)
def test_wrong_types_are_named(tmp_path, name, content, sentence):
    save_tiny_tokenizer(tmp_path)
    (tmp_path / name).write_text(json.dumps(content))
    found = message(tmp_path)
    assert str(tmp_path / name) in found
    assert sentence in found
