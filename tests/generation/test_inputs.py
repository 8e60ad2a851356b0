"""What `generate` reads: vectors for tokens, images read before, a cache to continue from; and what it refuses."""

import jax
import numpy as np
import pytest

from tests.reference.generation import EOS, ROWS, config, random_model, random_prompts, shared_model
from tests.support.tiny_tokenizer import save_tiny_tokenizer

NEW = {"max_new_tokens": 8, "eos_token_id": EOS}


@pytest.fixture(scope="module")
def model():
    return shared_model()


def new_tokens(model, batch, **options):
    return model.generate(**batch, **{**NEW, **options})[:, batch["input_ids"].shape[1] :]


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 2}, pytest.param({"do_sample": True, "seed": 1}, marks=pytest.mark.slow)], ids=str
)
def test_inputs_embeds(options, model):
    """The answer alone comes back, as in the reference; nothing is known of the prompt's tokens."""
    batch = random_prompts(model.config, 0, ROWS)
    expected = new_tokens(model, batch, **options)
    embeds = np.asarray(jax.jit(model.model.embed)(batch.pop("input_ids")))
    np.testing.assert_array_equal(model.generate(inputs_embeds=embeds, **batch, **NEW, **options), expected)


def test_images_read_before(model):
    batch = random_prompts(model.config, 1, ROWS, images=(1, 3))
    expected = new_tokens(model, batch)
    pixels = batch.pop("pixel_values")
    flat = pixels.reshape(-1, *pixels.shape[2:])
    patches = jax.jit(model.model.vision)(flat)
    latents = jax.jit(model.model.resampler)(patches)
    for name, states in (("image_encoder_embeddings", patches), ("perceiver_embeddings", latents)):
        states = np.asarray(states).reshape(*pixels.shape[:2], *states.shape[1:])
        np.testing.assert_array_equal(new_tokens(model, batch | {name: states}), expected)


def test_a_model_without_resampler_reads_patches():
    model = random_model(config(use_resampler=False))
    batch = random_prompts(model.config, 1, 2, images=(1, 2))
    expected, pixels = new_tokens(model, batch), batch.pop("pixel_values")
    patches = np.asarray(jax.jit(model.model.vision)(pixels.reshape(-1, *pixels.shape[2:])))
    patches = patches.reshape(*pixels.shape[:2], *patches.shape[1:])
    np.testing.assert_array_equal(new_tokens(model, batch | {"image_encoder_embeddings": patches}), expected)
    latents = np.zeros((*pixels.shape[:2], 4, 24), np.float32)
    with pytest.raises(ValueError, match="perceiver_embeddings need a model with use_resampler=True"):
        new_tokens(model, batch | {"perceiver_embeddings": latents})


def test_images_of_another_size(model):
    batch = random_prompts(model.config, 1, ROWS, images=(1, 2))
    batch["pixel_values"] = np.random.default_rng(0).standard_normal((ROWS, 2, 42, 35, 3)).astype(np.float32)
    batch["image_attention_mask"] = batch["image_attention_mask"][:, :, :1].repeat(2, axis=2)
    with pytest.raises(ValueError, match="Images of 42x35 pixels do not fit a model made for 28x28"):
        new_tokens(model, batch)
    tokens = new_tokens(model, batch, interpolate_pos_encoding=True)
    logits = model(**batch, interpolate_pos_encoding=True).logits
    np.testing.assert_array_equal(tokens[:, 0], np.argmax(np.asarray(logits)[:, -1], axis=-1))


def joined(first, answers, second):
    """One batch of whole conversations, row by row: a turn, its answer without padding, and the next turn.

    New images come after the old ones; tokens of the second turn before its first image see what the answer saw.
    """
    rows, images = [], first["pixel_values"].shape[1] + second["pixel_values"].shape[1]
    for row, answer in enumerate(answers):
        parts = []
        real = first["attention_mask"][row] != 0
        mask = np.zeros((real.sum(), images), int)
        mask[:, : first["pixel_values"].shape[1]] = first["image_attention_mask"][row, real]
        parts.append((first["input_ids"][row, real], mask))
        parts.append((answer, np.repeat(mask[-1:], len(answer), axis=0)))
        real = second["attention_mask"][row] != 0
        new = second["image_attention_mask"][row, real]
        mask = np.where(np.logical_or.accumulate(new.any(axis=1))[:, None], 0, mask[-1:])
        mask[:, first["pixel_values"].shape[1] :] = new
        parts.append((second["input_ids"][row, real], mask))
        rows.append([np.concatenate(part) for part in zip(*parts, strict=True)])
    width = max(len(tokens) for tokens, _ in rows)
    batch = {
        "input_ids": np.zeros((len(rows), width), np.int32),
        "attention_mask": np.zeros((len(rows), width), np.int32),
        "image_attention_mask": np.zeros((len(rows), width, images), np.int32),
        "pixel_values": np.concatenate([first["pixel_values"], second["pixel_values"]], axis=1),
    }
    for row, (tokens, mask) in enumerate(rows):
        batch["input_ids"][row, -len(tokens) :] = tokens
        batch["attention_mask"][row, -len(tokens) :] = 1
        batch["image_attention_mask"][row, -len(tokens) :] = mask
    return batch


def without_padding(answers):
    """Each row up to its first end of sequence."""
    return [row[: np.flatnonzero(np.append(np.isin(row, EOS), True))[0] + 1] for row in answers]


IMAGES = {"text": (0, 0), "some images": (0, 2), "many images": (2, 7)}
RULED = {"repetition_penalty": 1.4, "bad_words_ids": [[17, 30]]}


@pytest.mark.parametrize(
    ("rules", "images"),
    [
        *[pytest.param({}, images, id=name) for name, images in IMAGES.items()],
        *[
            pytest.param(RULED, images, id=f"rules, {name}", marks=() if name == "some images" else pytest.mark.slow)
            for name, images in IMAGES.items()
        ],
    ],
)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_conversation_continues_from_its_cache(rules, images, seed, model):
    first = random_prompts(model.config, 10 + seed, 3, images=(0, 3))
    output = model.generate(**first, **NEW, **rules, return_dict_in_generate=True)
    answers = without_padding(output.sequences[:, first["input_ids"].shape[1] :])
    second = random_prompts(model.config, 20 + seed, 3, images=images)
    whole = joined(first, answers, second)
    expected = new_tokens(model, whole, **rules)
    for _ in range(2):  # a cache can be used again
        continued = model.generate(**second, **NEW, **rules, cache=output.cache, return_dict_in_generate=True)
        np.testing.assert_array_equal(continued.sequences[:, second["input_ids"].shape[1] :], expected)
    # And once more, from there.
    answers = without_padding(expected)
    third = random_prompts(model.config, 30 + seed, 3, images=(0, 1))
    expected = new_tokens(model, joined(whole, answers, third), **rules)
    np.testing.assert_array_equal(new_tokens(model, third, cache=continued.cache, **rules), expected)


@pytest.mark.parametrize(
    ("images", "options"),
    [
        pytest.param((0, 0), {}, marks=pytest.mark.slow),
        ((0, 0), {"num_beams": 2}),
        ((1, 2), {}),
        pytest.param((1, 2), {"num_beams": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_several_answers_each_continue(images, options, model):
    """Each of the answers drawn to one prompt is a conversation of its own, with more images if need be."""
    first = random_prompts(model.config, 5, 2, images=(1, 3))
    output = model.generate(
        **first,
        max_new_tokens=8,
        eos_token_id=EOS,
        do_sample=True,
        num_return_sequences=2,
        seed=3,
        return_dict_in_generate=True,
    )
    answers = without_padding(output.sequences[:, first["input_ids"].shape[1] :])
    twice = {name: np.repeat(array, 2, axis=0) for name, array in first.items()}
    second = random_prompts(model.config, 6, 4, images=images)
    expected = new_tokens(model, joined(twice, answers, second), **options)
    np.testing.assert_array_equal(new_tokens(model, second, cache=output.cache, **options), expected)


def test_a_cache_of_other_conversations(model):
    batch = random_prompts(model.config, 0, 2)
    cache = model.generate(**batch, **NEW, return_dict_in_generate=True).cache
    with pytest.raises(ValueError, match="The cache is of 2 conversations, and 3 prompts were given"):
        model.generate(**random_prompts(model.config, 0, 3), **NEW, cache=cache)
    long = random_prompts(model.config, 0, 2, lengths=(230, 230))
    with pytest.raises(ValueError, match=r"Prompt \d has 2\d\d tokens and asks for 8 more, but the model has only 256"):
        model.generate(**long, **NEW, cache=cache)


def test_stop_strings_end_answers(model, tmp_path):
    """At the token that completes one: the shortest answer whose text has it, also where it began in the prompt."""
    from tokenizers import Tokenizer

    save_tiny_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    batch = random_prompts(model.config, 0, ROWS)
    free = model.generate(**batch, max_new_tokens=12, eos_token_id=())
    width = batch["input_ids"].shape[1]
    texts = [tokenizer.decode(free[0, width : width + end].tolist(), skip_special_tokens=False) for end in range(13)]
    stop = texts[5][-3:]
    assert stop.strip()
    assert "\N{REPLACEMENT CHARACTER}" not in stop
    end = next(end for end, text in enumerate(texts) if stop in text)
    same = {name: np.repeat(array[:1], ROWS, axis=0) for name, array in batch.items()}
    options = {"max_new_tokens": 12, "eos_token_id": (), "tokenizer": tokenizer}
    batched = model.generate(**batch, **options, stop_strings=stop)
    np.testing.assert_array_equal(batched[0, width : width + end], free[0, width : width + end])
    assert not batched[0, width + end :].any()
    for extra in ({}, {"do_sample": True, "top_k": 1}):
        stopped = model.generate(**same, **options, **extra, stop_strings=["never said", stop])
        np.testing.assert_array_equal(stopped, np.repeat(free[:1, : width + end], ROWS, axis=0))
    beams = model.generate(**batch, **options, stop_strings=stop, num_beams=2)
    for row in beams[:, width:]:
        before_last = row[row != 0][:-1].tolist()
        assert stop not in tokenizer.decode(before_last, skip_special_tokens=False)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda b: {"input_ids": None}, "Pass exactly one of input_ids and inputs_embeds."),
        (lambda b: {"inputs_embeds": np.zeros((2, 3, 32))}, "Pass exactly one of input_ids and inputs_embeds"),
        (lambda b: {"input_ids": b["input_ids"][0]}, r"input_ids is \[\d+\]; it must be \[batch, seq\]"),
        (lambda b: {"input_ids": b["input_ids"] / 2}, "input_ids must be whole numbers, not float64"),
        (lambda b: {"input_ids": b["input_ids"] + 80}, "but the model's tokens are 0 to 98; is it another model's"),
        (lambda b: {name: array[:0] for name, array in b.items()}, "The batch holds no prompt; pass at least one"),
        (lambda b: {"attention_mask": b["attention_mask"] * [[1], [0]]}, "Prompt 1 is empty; give it at least one"),
        (lambda b: {"attention_mask": b["attention_mask"][:, 1:]}, r"attention_mask is \[2, \d+\]; it must be"),
        (lambda b: {"image_attention_mask": None}, "pixel_values needs image_attention_mask, which says which"),
        (lambda b: {"pixel_values": None}, "lets tokens see images, but none were given; pass pixel_values"),
        (lambda b: {"pixel_values": b["pixel_values"][:, :1]}, r"pixel_values is \[2, 1, 28, 28, 3\]; it must be"),
        (lambda b: {"pixel_values": b["pixel_values"].swapaxes(2, 4)}, r"it must be \[2, 2, height, width, 3\]"),
        (lambda b: {"perceiver_embeddings": np.zeros((2, 2, 4, 24))}, "Pass only one of pixel_values and perceiver"),
        (lambda b: {"max_new_tokens": 0}, "max_new_tokens is 0; it must be a whole number from 1 to 2,147,483,647"),
        (lambda b: {"max_new_tokens": 250}, r"Prompt \d has \d+ tokens and asks for 250 more, but the model has"),
        (lambda b: {"max_new_tokens": None, "max_length": 5}, r"max_length is 5, and the prompt has \d+ tokens"),
        (lambda b: {"eos_token_id": 99}, "eos_token_id holds 99, but the model's tokens are 0 to 98"),
        (lambda b: {"stop_strings": "x"}, r"stop_strings need to know the tokens' text; pass tokenizer="),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit(change, sentence, model):
    batch = random_prompts(model.config, 0, 2, images=(1, 2), lengths=(10, 20))
    assert batch["pixel_values"].shape[1] == 2
    with pytest.raises(ValueError, match=sentence):
        model.generate(**{**batch, **NEW, **change(batch)})
