"""Log-likelihoods of candidates: those of a plain forward pass and of PyTorch, from one reading of the prompt."""

import numpy as np
import pytest

from idefics_jax import IdeficsForVisionText2Text, make_mesh
from idefics_jax.evaluation import scoring
from idefics_jax.evaluation.examples import Example
from idefics_jax.evaluation.prompting import Shot, batch_inputs, make_prompt, read_images
from idefics_jax.evaluation.scoring import log_likelihoods, pack
from idefics_jax.evaluation.templates import TEMPLATES, Template
from idefics_jax.processing.processor import image_mask
from tests.support.tiny_processor import tiny_processor

ANSWERS = ("cat", "a red chair in the street", "dogs", "the harbour wall", "sail", "x")
TEMPLATE = Template("{bos}Look.\n", "Image:<image>Question: {question} Answer: {answer}.\n", ())


def example(photos, number, candidates=ANSWERS, images=1, question="What is it?"):
    paths = tuple(str(photos / f"{(number + i) % 12}.png") for i in range(images))
    return Example(number, paths, question, candidates[:1], candidates, {})


def prompt(processor, query, shots=(), template=TEMPLATE, **changes):
    choices = {"text_only": False, "names": {}, "new_tokens": 1, "limit": 2048, "positions": 2048, **changes}
    return make_prompt(processor.tokenizer, template, query, [Shot(shot, shot.answer) for shot in shots], **choices)


def inputs_of(processor, prompts):
    images = read_images(processor.image_processor, [path for one in prompts for path in one.images])
    assert not images.errors
    return batch_inputs(processor, prompts, images.arrays)


@pytest.fixture(scope="module")
def prompts(processor, photos):
    """Of different lengths, numbers of images and candidates."""
    others = [example(photos, number) for number in range(5, 8)]
    return [
        prompt(processor, example(photos, 0)),
        prompt(processor, example(photos, 1, ANSWERS[:2]), others),
        prompt(processor, example(photos, 2, ("yes", "no"), images=2), others[:1]),
        prompt(processor, example(photos, 3, ("yes", "no"), images=0, question="And so?")),
    ]


def full_rows(processor, one, length=128):
    """Each candidate after the whole prompt, as inputs of a forward pass, and where its tokens are."""
    images = read_images(processor.image_processor, one.images)
    for tokens in one.candidates:
        row = np.zeros((1, length), np.int32)
        row[0, : len(one.tokens) + len(tokens)] = one.tokens + tokens
        pixels = np.zeros((1, 4, 28, 28, 3), np.float32)
        for place, path in enumerate(one.images):
            pixels[0, place] = images.arrays[path]
        mask = image_mask(row, processor.image_token_id, processor.tokenizer.eos_token_id, 4)
        valid = (np.arange(length) < len(one.tokens) + len(tokens))[None].astype(np.int32)
        places = slice(len(one.tokens), len(one.tokens) + len(tokens))
        yield row, valid, pixels, mask * valid[..., None], places


def sum_of(logits, row, places):
    """The log-probability of the tokens at `places`, summed in float64."""
    logits = np.asarray(logits, np.float64)[0, places.start - 1 : places.stop - 1]
    logits -= np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) + logits.max(
        -1, keepdims=True
    )
    return sum(logits[place, token] for place, token in enumerate(row[0, places]))


@pytest.fixture(scope="module")
def together(model, processor, prompts):
    """The scores of the prompts as one batch."""
    return log_likelihoods(model, inputs_of(processor, prompts), prompts)


def test_scores_are_those_of_a_plain_forward_pass(model, processor, prompts, together):
    for one, scores in zip(prompts, together, strict=True):
        expected = [
            sum_of(
                model(row, valid, pixel_values=pixels, image_attention_mask=mask).logits,
                row,
                places,
            )
            for row, valid, pixels, mask, places in full_rows(processor, one)
        ]
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-4)
        assert np.ptp(scores) > 0.5  # or little would be compared


def test_another_image_changes_the_scores_of_its_own_prompt_alone(model, processor, photos, prompts, together):
    changed = [prompts[0]._replace(images=(str(photos / "4.png"),)), *prompts[1:]]
    first, *others = log_likelihoods(model, inputs_of(processor, changed), changed)
    assert np.abs(first - together[0]).max() > 1e-2
    for scores, expected in zip(others, together[1:], strict=True):
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-4)


def test_one_by_one_gives_the_same(model, processor, prompts, together):
    for one, scores in zip(prompts, together, strict=True):
        (alone,) = log_likelihoods(model, inputs_of(processor, [one]), [one])
        np.testing.assert_allclose(alone, scores, rtol=1e-5, atol=1e-4)


def test_the_prompt_is_read_once_for_all_candidates(model, processor, photos, monkeypatch):
    """The prompt goes through the model in one call, whatever the number of candidates and of calls that they take."""
    many = tuple(f"the {word} of the {other}" for word in ANSWERS for other in ANSWERS)
    asked = [prompt(processor, example(photos, number, many)) for number in range(2)]
    readings, rests = [], []
    prefill, rest = scoring.prefill_prompts, scoring._rest

    def count_reading(*arguments):
        readings.append(arguments[2].tokens.shape)
        return prefill(*arguments)

    def count_rest(*arguments):
        rests.append(np.asarray(arguments[5]) > 0)
        return rest(*arguments)

    monkeypatch.setattr(scoring, "prefill_prompts", count_reading)
    monkeypatch.setattr(scoring, "_rest", count_rest)
    log_likelihoods(model, inputs_of(processor, asked), asked)
    assert len(readings) == 1
    assert len(rests) > 1
    own_tokens = sum(len(tokens) - 1 for one in asked for tokens in one.candidates)
    assert sum(int(real.sum()) for real in rests) == own_tokens  # nothing of the prompt among them


def test_single_tokens_need_the_prompt_alone(model, processor, prompts, monkeypatch):
    monkeypatch.setattr(scoring, "_rest", None)
    short = [prompts[0]._replace(candidates=((10,), (300,)))]
    (scores,) = log_likelihoods(model, inputs_of(processor, short), short)
    logits = np.asarray(model(**inputs_of(processor, short)).logits, np.float64)[0, -1]
    np.testing.assert_allclose(scores, logits[[10, 300]] - np.log(np.exp(logits).sum()), rtol=1e-5)


def test_a_candidate_longer_than_a_row(model, processor, prompts):
    random = np.random.default_rng(0)
    long = prompts[0]._replace(candidates=((5,), tuple(random.integers(3, 500, scoring.PACKED + 40).tolist()), (6, 7)))
    (scores,) = log_likelihoods(model, inputs_of(processor, [long]), [long])
    for score, (row, valid, pixels, mask, places) in zip(scores, full_rows(processor, long, 512), strict=True):
        logits = model(row, valid, pixel_values=pixels, image_attention_mask=mask).logits
        np.testing.assert_allclose(score, sum_of(logits, row, places), rtol=1e-5)


def test_packing_puts_every_token_into_one_place():
    random = np.random.default_rng(1)
    candidates = [[tuple(range(random.integers(1, 90))) for _ in range(20)] for _ in range(3)]
    packed = pack(candidates, np.array([7, 9, 11]), 4)
    for row, ids in enumerate(candidates):
        found = [[] for _ in ids]
        for part in packed:
            for place in np.flatnonzero(part.owner[row] >= 0):
                assert part.segments[row, place] > 0
                token = part.tokens[row, place]
                assert (part.targets[row, place], part.positions[row, place]) == (token + 1, 7 + 2 * row + token)
                found[part.owner[row, place]].append(token)
        assert [tuple(tokens) for tokens in found] == [tokens[:-1] for tokens in ids]
    assert all((part.segments > 0).sum(axis=1).max() <= scoring.PACKED for part in packed)


def test_scores_are_the_same_on_a_mesh(base, processor, prompts, together):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    spread = IdeficsForVisionText2Text.from_pretrained(base, dtype="float32", mesh=mesh)
    found = log_likelihoods(spread, inputs_of(processor, prompts), prompts)
    for scores, expected in zip(found, together, strict=True):
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.torch
def test_scores_are_pytorchs(base, processor, prompts, together):
    """As the authors score: the whole text of each candidate goes through the model, and what is common to all is the
    difference between their sum over all its tokens and ours over the candidate's."""
    torch = pytest.importorskip("torch")
    from transformers import IdeficsForVisionText2Text as Reference

    reference = Reference.from_pretrained(base, attn_implementation="eager", dtype=torch.float32).eval()
    for one, scores in zip(prompts, together, strict=True):
        if not one.images:
            continue
        own, everything = [], []
        for row, valid, pixels, mask, places in full_rows(processor, one):
            with torch.no_grad():
                logits = reference(
                    input_ids=torch.tensor(row).long(),
                    attention_mask=torch.tensor(valid),
                    pixel_values=torch.tensor(pixels).permute(0, 1, 4, 2, 3),
                    image_attention_mask=torch.tensor(mask),
                ).logits.numpy()
            own.append(sum_of(logits, row, places))
            everything.append(sum_of(logits, row, slice(1, places.stop)))
        np.testing.assert_allclose(scores, own, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(np.ptp(np.array(everything) - own), 0, atol=1e-3)


@pytest.mark.parametrize("form", ["base", "instruct"])
@pytest.mark.parametrize("name", ["photo", "sentiment", "hateful-memes", "scienceqa"])
def test_closed_templates_part_where_candidates_do(name, form, photos):
    """Prompt and candidate together are the tokens of the whole text, as the authors make it, and the candidate's own
    begin where the prompt's text ends."""
    processor, forms = tiny_processor(form == "instruct"), TEMPLATES[name]
    fields = {"text": "so", "context": "Which?\n", "solution": "It is."}
    query = Example(0, (str(photos / "0.png"),), "", ("red fox",), ("red fox", "red panda", "cat"), fields)
    template = forms.get(form, forms["base"])
    made = prompt(processor, query, [query], template)
    for candidate, tokens in zip(query.candidates, made.candidates, strict=True):
        text = template.prefix.format(bos="<s>") + template.example.format(**fields, answer="red fox")
        text = (text + template.example.format(**fields | {"solution": ""}, answer=candidate)).strip()
        marked = text.replace("<image>", "<fake_token_around_image><image><fake_token_around_image>")
        assert made.tokens + tokens == tuple(processor.tokenizer.encode(marked))
    before = template.example.split("{answer}")[0].format(**fields).split("<image>")[-1]
    assert processor.decode(made.tokens).replace("> ", ">").endswith(before.rstrip())
