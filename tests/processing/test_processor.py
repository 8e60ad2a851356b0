"""Prompts of texts and images become the reference's ids, masks and pixels; and bad ones give one clear sentence."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from idefics_jax.processing.image_processor import IdeficsImageProcessor
from idefics_jax.processing.processor import IdeficsProcessor, image_mask
from idefics_jax.processing.tokenizer import IdeficsTokenizer
from tests.reference import record
from tests.reference.processor import IMAGE_SIZE, batches, flat, reference_outputs, reference_processor
from tests.support.tiny_processor import BLUE, GREEN, RED, assert_same, tiny_processor
from tests.support.tiny_tokenizer import FAKE_TOKEN_ID, IMAGE_TOKEN_ID


@pytest.fixture
def processor() -> IdeficsProcessor:
    return tiny_processor()


# What the reference gives


def test_random_prompts_give_the_references_inputs(processor):
    made, recorded = batches(), record.load("processor")
    assert sum(len(prompts) for prompts, _ in made) >= 200
    outputs = [processor(prompts, **arguments) for prompts, arguments in made]
    for name, values in flat(outputs).items():
        np.testing.assert_allclose(values, recorded[name], rtol=0, atol=1e-6 * (name == "pixel_values"), err_msg=name)
    assert processor.batch_decode([output["input_ids"][0] for output in outputs]) == recorded["texts"].tolist()
    dtypes = {name: values.dtype for name, values in outputs[0].items()}
    assert dtypes.pop("pixel_values") == np.float32
    assert set(dtypes.values()) == {np.dtype(np.int32)}


@pytest.mark.torch
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
def test_random_prompts_live(processor, tmp_path, seed):
    pytest.importorskip("torch")
    made = batches(seed)
    theirs = reference_outputs(reference_processor(tmp_path), made)
    for (prompts, arguments), expected in zip(made, theirs, strict=True):
        output = processor(prompts, **arguments)
        assert output.keys() == expected.keys()
        for name, values in output.items():
            np.testing.assert_allclose(values, expected[name], rtol=0, atol=1e-6 * (name == "pixel_values"))


@pytest.mark.torch
def test_transformers_reads_what_we_save_and_we_what_it_saves(processor, tmp_path):
    pytest.importorskip("torch")
    from transformers import IdeficsProcessor as Theirs

    prompts = [
        ["User:", RED, "What is in this image?", "\nAssistant: a cat.", "User:", GREEN, BLUE, " And  this? é 猫 😀"],
        ["No image at all.\n\nThe second line"],
    ]
    processor.save_pretrained(tmp_path / "ours")
    theirs = Theirs.from_pretrained(tmp_path / "ours", backend="pil")
    theirs.save_pretrained(tmp_path / "theirs")
    ours = [processor, IdeficsProcessor.from_pretrained(tmp_path / "theirs")]
    # By default transformers 5 leaves <end_of_utterance> out, as it no longer finds it among the special tokens' names.
    for arguments in (
        {"add_end_of_utterance_token": True},
        {"add_end_of_utterance_token": False, "add_eos_token": True},
    ):
        expected = theirs(text=prompts, **arguments)
        for one in ours:
            output = one(prompts, **arguments)
            np.testing.assert_array_equal(output["input_ids"], expected["input_ids"])
            np.testing.assert_array_equal(output["attention_mask"], expected["attention_mask"])
            np.testing.assert_array_equal(output["image_attention_mask"], expected["image_attention_mask"])
            pixels = expected["pixel_values"].permute(0, 1, 3, 4, 2)
            np.testing.assert_allclose(output["pixel_values"], pixels, rtol=0, atol=1e-6)


# Masks and shapes


def test_each_token_sees_the_last_image_before_it(processor):
    """The drawing in `image_mask`'s docstring, with padding on both sides."""
    fake, image = FAKE_TOKEN_ID, IMAGE_TOKEN_ID
    ids = np.array([[0, 1, 300, fake, image, fake, 301, 2, 1, fake, image, fake, 302, 0]])
    expected = np.zeros((1, ids.shape[1], 3), np.int32)
    expected[0, 4:8, 0] = 1
    expected[0, 10:, 1] = 1
    np.testing.assert_array_equal(image_mask(ids, image, eos_token_id=2, image_count=3), expected)


def test_prompts_without_images(processor):
    inputs = processor([["Hello"], ["Hello there, how are you?"]])
    assert inputs["pixel_values"].shape == (2, 1, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert inputs["image_attention_mask"].shape == (*inputs["input_ids"].shape, 1)
    assert not inputs["pixel_values"].any()
    assert not inputs["image_attention_mask"].any()
    assert processor("Hello", image_size=5)["pixel_values"].shape == (1, 1, 5, 5, 3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_of_a_batch_is_what_the_prompt_alone_gives(processor, side):
    prompts = [["one", RED, "two"], ["three words here"], [GREEN, BLUE, RED, "x"], ["a", GREEN]]
    batch = processor(prompts, padding_side=side)
    length = batch["input_ids"].shape[1]
    assert batch["pixel_values"].shape[1] == 3
    for row, prompt in enumerate(prompts):
        alone = processor(prompt)
        count = alone["input_ids"].shape[1]
        place = slice(length - count, None) if side == "left" else slice(count)
        np.testing.assert_array_equal(batch["input_ids"][row, place], alone["input_ids"][0])
        assert batch["attention_mask"][row].sum() == batch["attention_mask"][row, place].sum() == count
        assert not batch["input_ids"][row][batch["attention_mask"][row] == 0].any()
        images = alone["pixel_values"].shape[1]
        np.testing.assert_array_equal(batch["pixel_values"][row, :images], alone["pixel_values"][0])
        assert not batch["pixel_values"][row, images:].any()
        mask = batch["image_attention_mask"][row, place]
        np.testing.assert_array_equal(mask[:, :images], alone["image_attention_mask"][0])
        assert not mask[:, images:].any()


def test_padded_lengths(processor):
    short, long = ["a"], ["a", RED, "and many more words in this text"]
    tokens = processor(long)["input_ids"].shape[1]
    assert 9 < tokens < 32
    for arguments, expected in [
        ({}, tokens),
        ({"padding": True}, tokens),
        ({"pad_to_multiple_of": 16}, 32),
        ({"pad_to_multiple_of": tokens}, tokens),
        ({"padding": "max_length", "max_length": 40}, 40),
        ({"padding": "max_length", "max_length": 40, "pad_to_multiple_of": 16}, 48),
        ({"truncation": True, "max_length": 9}, 9),
        ({"truncation": True, "max_length": 99}, tokens),
        ({"truncation": "longest_first", "max_length": np.int64(9)}, 9),
        ({"truncation": "do_not_truncate", "max_length": 9}, tokens),
        ({"truncation": None}, tokens),
    ]:
        assert processor([short, long], **arguments)["input_ids"].shape == (2, expected)
    for padding in (False, "do_not_pad"):
        assert processor(long, padding=padding)["input_ids"].shape == (1, tokens)


def test_truncation_keeps_the_images_whose_marks_it_keeps(processor):
    prompt = [RED, "first", GREEN, "x"]
    whole = processor(prompt)
    ids, (red, green) = whole["input_ids"][0], whole["pixel_values"][0]
    for side, cut_ids, kept in [("right", ids[:4], red), ("left", ids[-4:], green)]:
        cut = processor(prompt, truncation=True, truncation_side=side, max_length=4)
        np.testing.assert_array_equal(cut["input_ids"][0], cut_ids)
        np.testing.assert_array_equal(cut["pixel_values"][0, 0], kept)
        assert not cut["pixel_values"][0, 1].any()
        from_image = np.maximum.accumulate(cut_ids == IMAGE_TOKEN_ID)
        assert from_image.any()
        np.testing.assert_array_equal(cut["image_attention_mask"][0], np.stack([from_image, 0 * from_image], -1))
    assert not processor(prompt, truncation=True, max_length=2)["pixel_values"].any()


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"padding": False}, r"^The prompts have 3 to 4 tokens; pad them, padding='longest'\.$"),
        ({"padding": "max_length"}, r"^padding='max_length' needs max_length, the number of tokens to pad to\.$"),
        (
            {"padding": "max_length", "max_length": 3},
            r"^A prompt has 4 tokens, more than max_length=3; use truncation=",
        ),
        ({"truncation": True}, r"^truncation=True needs max_length, the number of tokens to keep\.$"),
    ],
)
def test_lengths_that_do_not_fit(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor([["a\n"], ["a", "b\n"]], add_end_of_utterance_token=False, **arguments)


def test_bad_images_in_prompts_are_named(processor, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^The image file typo\.jpg does not exist\.$"):
        processor(["User:", "typo.jpg", "What?"])
    (tmp_path / "notes.png").write_text("words")
    with pytest.raises(ValueError, match=r"notes\.png is not an image that Pillow can read \(5 bytes\)\.$"):
        processor(["User:", tmp_path / "notes.png", "What?"])


@pytest.mark.parametrize("token", ["<image>", "<fake_token_around_image>"])
def test_a_tokenizer_without_the_image_tokens_is_refused(tmp_path, token):
    tiny_processor().save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        content = (tmp_path / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(content.replace(token, "<other>"), encoding="utf-8")
    with pytest.raises(ValueError, match=f"^The tokenizer has no {token} token, which IDEFICS needs; use the"):
        IdeficsProcessor.from_pretrained(tmp_path)


def test_a_directory_without_the_processors_files_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no preprocessor_config\.json, which says how images"):
        IdeficsProcessor.from_pretrained(tmp_path)
    IdeficsImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has neither tokenizer\.json nor tokenizer\.model\.$"):
        IdeficsProcessor.from_pretrained(tmp_path)


SETTINGS = [
    ({"padding": "longst"}, r"padding is 'longst'; it must be True, False, 'longest', 'max_length' or 'do_not_pad'\."),
    ({"padding": None}, "padding is None; it must be"),
    ({"padding": 1}, "padding is 1; it must be"),
    ({"padding_side": "Left"}, r"padding_side is 'Left'; it must be 'left' or 'right'\."),
    ({"truncation": 3}, r"truncation is 3; it must be True, False, 'longest_first', 'only_first' or 'do_not_truncate'"),
    ({"truncation": True, "max_length": 4, "truncation_side": 1}, "truncation_side is 1; it must be 'left' or 'right'"),
    ({"max_length": -3}, r"max_length is -3; it must be a whole number from 1 to 1,048,576\."),
    ({"max_length": 0}, "max_length is 0; it must be"),
    ({"max_length": "8"}, "max_length is '8'; it must be"),
    ({"padding": "max_length", "max_length": 10**30}, "max_length is 1000000000000000000000000000000; it must be"),
    ({"pad_to_multiple_of": 0}, "pad_to_multiple_of is 0; it must be"),
    ({"pad_to_multiple_of": -8}, "pad_to_multiple_of is -8; it must be"),
    ({"pad_to_multiple_of": 2.5}, "pad_to_multiple_of is 2.5; it must be"),
    ({"image_size": 0}, r"image_size is 0; it must be a whole number from 1 to 4,096\."),
    ({"image_size": 10**6}, "image_size is 1000000; it must be"),
    ({"image_size": True}, "image_size is True; it must be"),
    ({"image_size": "big"}, "image_size is 'big'; it must be"),
    ({"return_tensors": "pt"}, r'return_tensors="pt" is not made here, and the model takes NumPy arrays; leave it out'),
    ({"return_tensors": "tf"}, "tf.constant"),
    ({"paddding": True}, r"The processor does not take paddding; did you mean padding\?"),
    ({"transform": abs}, "The processor does not take transform: pass image_transform="),
    ({"device": "cuda"}, "The processor does not take device: arrays go to the model's devices"),
    ({"zzz": 1}, "The processor does not take zzz; leave it out"),
]


@pytest.mark.parametrize(("arguments", "sentence"), SETTINGS, ids=[str(arguments) for arguments, _ in SETTINGS])
def test_settings_that_are_none(processor, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        processor(["a", RED], **arguments)


def test_requests_that_are_too_long_are_refused_by_counting(processor):
    for prompt, arguments in (
        ([RED] * 10**6, {}),
        ("<image>" * 10**6, {"images": [RED] * 10**6}),
        ([["a"], [RED] * 10_000], {}),
        (["a", "b"], {"images": [[RED], [RED] * 10_000]}),
    ):
        with pytest.raises(ValueError, match=r"holds 1\d*,000(,000)? items in one prompt; at most 8,192 are possible"):
            processor(prompt, **arguments)
    with pytest.raises(ValueError, match=r"The text has 20,000,003 characters; at most 1,000,000 are possible"):
        processor("a" * 20_000_000)
    with pytest.raises(ValueError, match="The text is not valid Unicode: character 4 is half of a surrogate pair"):
        processor("\udcff")


def test_jax_arrays(processor):
    import jax

    ours, arrays = processor(["a", RED], return_tensors="np"), processor(["a", RED], return_tensors="jax")
    assert all(isinstance(array, jax.Array) for array in arrays.values())
    assert_same({name: np.asarray(array) for name, array in arrays.items()}, ours)


def test_it_says_what_it_is(processor):
    assert repr(processor).startswith("IdeficsProcessor(instruct, images of 2 x 2 pixels, IdeficsTokenizer(515 tokens;")


# Files, decoding, workers


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"device_map": "auto"}, r'from_pretrained does not take device_map: pass mesh="tensor=2" or another mesh'),
        ({"trust_remote_code": True}, "does not take trust_remote_code: no code of a checkpoint is ever run"),
        ({"use_fast": True}, "does not take use_fast: there is one tokenizer"),
        ({"revison": "main"}, r"does not take revison; did you mean revision\?"),
    ],
)
def test_arguments_of_from_pretrained(arguments, sentence, processor, tmp_path):
    processor.save_pretrained(tmp_path)
    for kind in (IdeficsProcessor, IdeficsTokenizer):
        with pytest.raises(ValueError, match=sentence):
            kind.from_pretrained(tmp_path, **arguments)
    hub = {"revision": "main", "cache_dir": tmp_path, "token": None, "local_files_only": True}
    assert len(IdeficsProcessor.from_pretrained(tmp_path, **hub, trust_remote_code=False).tokenizer) == 515


def test_save_and_load(processor, tmp_path):
    processor.save_pretrained(tmp_path / "new")
    loaded = IdeficsProcessor.from_pretrained(tmp_path / "new")
    assert loaded.image_processor == processor.image_processor
    for prompts, arguments in batches(5, count=5):
        assert_same(loaded(prompts, **arguments), processor(prompts, **arguments))


def test_the_checkpoints_sides_are_used(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    sides = {"padding_side": "right", "truncation_side": "left"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | sides))
    prompts = [["a"], ["b", RED, "c and more"]]
    arguments = {"truncation": True, "max_length": 6}
    assert_same(
        IdeficsProcessor.from_pretrained(tmp_path)(prompts, **arguments), processor(prompts, **arguments, **sides)
    )


def test_it_can_be_pickled(processor):
    prompt = ["User:", RED, "What?"]
    assert_same(pickle.loads(pickle.dumps(processor))(prompt), processor(prompt))


def test_decoding(processor):
    ids = processor(["User:", RED, "é 猫 😀\nAssistant:"])["input_ids"]
    assert processor.batch_decode(ids, skip_special_tokens=True) == ["User: é 猫 😀\nAssistant:"]
    assert processor.decode(ids[0]) == processor.batch_decode(ids)[0] == processor.batch_decode(ids.tolist())[0]
    assert processor.decode(ids[0]).count("<image>") == 1
    assert processor.decode(ids) == processor.batch_decode(ids[0]) == processor.batch_decode(ids)  # as transformers 5


WORKER = """
import sys
from idefics_jax import IdeficsProcessor

processor = IdeficsProcessor.from_pretrained(sys.argv[1])
assert processor(["User:", sys.argv[1] + "/photo.png", "What?"])["pixel_values"].any()
print({name.partition(".")[0] for name in sys.modules} & {"jax", "jaxlib", "flax", "torch", "transformers"})
"""


def test_data_workers_need_neither_jax_nor_torch(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    RED.save(tmp_path / "photo.png")
    command = [sys.executable, "-W", "error", "-c", WORKER, str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")
