"""`generate`: prompts in, tokens out."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, no_type_check

import jax
import numpy as np

from idefics_jax.generation.beam import make_beam_rules
from idefics_jax.generation.context import ConversationCache, PrefillInputs, patches_per_image, plan_reading
from idefics_jax.generation.hosts import Hosts
from idefics_jax.generation.prompts import Prompts, check_prompts
from idefics_jax.generation.run import answer, prefill_prompts, search
from idefics_jax.generation.sampling import make_sampling
from idefics_jax.generation.shapes import shapes_of
from idefics_jax.generation.stopping import make_stop_table
from idefics_jax.generation_config import RANGES, SETTINGS, GenerationConfig, as_list, settings, token_ids, word_ids
from idefics_jax.parallel.memory import Request, check_memory, request_needs
from idefics_jax.parallel.mesh import mesh_of, on_mesh_of
from idefics_jax.utils.checks import number

NEW_TOKENS = 20  # where no limit is given, as in the reference


class GenerationOutput(NamedTuple):
    """Output of `generate` with `return_dict_in_generate=True`.

    Attributes:
        sequences: int32 `[prompts * num_return_sequences, seq]`: prompt and answer, padded after the answer's end; the
            answer alone where the prompt was given as `inputs_embeds`.
        sequences_scores: float32, with beams: each answer's log-probability over `length ** length_penalty`.
        cache: to continue from, `generate(next turn, cache=output.cache)`; None with beams.
    """

    sequences: np.ndarray
    sequences_scores: np.ndarray | None
    cache: ConversationCache | None


@no_type_check  # wrong types have their own sentences
def generate(
    model: Any,
    input_ids: Any = None,
    attention_mask: Any = None,
    inputs_embeds: Any = None,
    pixel_values: Any = None,
    image_encoder_embeddings: Any = None,
    perceiver_embeddings: Any = None,
    image_attention_mask: Any = None,
    interpolate_pos_encoding: bool = False,
    *,
    cache: ConversationCache | None = None,
    generation_config: GenerationConfig | Mapping[str, Any] | None = None,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    min_new_tokens: int | None = None,
    min_length: int | None = None,
    do_sample: bool | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    no_repeat_ngram_size: int | None = None,
    num_beams: int | None = None,
    length_penalty: float | None = None,
    early_stopping: bool | str | None = None,
    num_return_sequences: int | None = None,
    bad_words_ids: Sequence[Sequence[int]] | None = None,
    suppress_tokens: int | str | Iterable[int | str] | None = None,
    eos_token_id: int | str | Iterable[int | str] | None = None,
    pad_token_id: int | str | None = None,
    stop_strings: str | Sequence[str] | None = None,
    tokenizer: Any = None,
    seed: int = 0,
    streamer: Any = None,
    return_dict_in_generate: bool | None = None,
    use_cache: bool | None = None,
    **unknown: Any,
) -> Any:
    """Continues each prompt: greedily, by sampling, or by beam search.

    Settings that are None are those of `generation_config`, then those of `model.generation_config`, which are the
    checkpoint's `generation_config.json`, then the reference's defaults.

    Prompts may be padded on either side. They are padded further to a few sizes, so that few programs are compiled; no
    padding changes an answer. A generated token sees the images that its prompt's last token saw.

    Where the model's mesh is over several processes, each calls this with its own prompts, as many as it likes, and the
    same settings, and gets the answers to its own. Together they are one batch, the prompts of process 0 first: errors
    number them so, and so do seeds. A process without prompts passes `input_ids` of shape `[0, 1]`.

    Args:
        model: an `IdeficsForVisionText2Text`.
        input_ids: int `[batch, seq]`; or `inputs_embeds`, float `[batch, seq, hidden]`.
        attention_mask: `[batch, seq]`, zero at padding; default: where `input_ids` are `pad_token_id`.
        pixel_values: `[batch, images, height, width, 3]`; or `image_encoder_embeddings`, `[batch, images, patches,
            features]`, the vision tower's output; or `perceiver_embeddings`, `[batch, images, latents, features]`, the
            resampler's; or none of them for prompts without images.
        image_attention_mask: `[batch, seq, images]`, non-zero where a token sees an image.
        interpolate_pos_encoding: accept images of another size than the model's.
        cache: the `cache` of an earlier output; the inputs are then the next turn alone.
        generation_config: settings, an `idefics_jax.GenerationConfig`, a mapping, or one of transformers'.
        max_new_tokens: the most tokens to add; default 20, or as `max_length` allows.
        max_length: the most tokens of prompt and answer together, padding included.
        min_new_tokens: no end of sequence before so many.
        min_length: no end of sequence before prompt and answer have so many together, padding included.
        do_sample: draw tokens, by the rules of the next four, instead of taking the likeliest.
        temperature: scores are divided by it.
        top_k: draw from so many of the likeliest tokens; 0: from all. 50 by default.
        top_p: draw from the likeliest tokens that have this probability together.
        min_p: draw from tokens that have at least this part of the likeliest one's probability.
        repetition_penalty: above 1, tokens that occurred before get less likely.
        no_repeat_ngram_size: so many tokens in a row occur only once, the prompt's included; 0: no such rule.
        num_beams: above 1, beam search.
        length_penalty: with beams, scores are divided by `length ** length_penalty`.
        early_stopping: with beams: True ends once `num_beams` answers are finished; False, once better ones are
            unlikely; "never", once they are impossible.
        num_return_sequences: answers per prompt, drawn independently or the best of the beams.
        bad_words_ids: token sequences that must not occur.
        suppress_tokens: token or tokens that must not occur.
        eos_token_id: token or tokens that end an answer, by id, or as text such as "</s>", which needs `tokenizer`;
            `()`: none.
        pad_token_id: what follows the end.
        stop_strings: strings that end an answer; the token that completes one is its last.
        tokenizer: tells what text tokens stand for; needed with `stop_strings`. A processor will do.
        seed: the same seed draws the same tokens; a row's do not depend on the other rows.
        streamer: has `put(tokens)`, called with the prompts `[batch, seq]` and then with each new token of each row,
            `[batch]`, and `end()`; those of `transformers` will do.
        return_dict_in_generate: return a `GenerationOutput` instead of its `sequences`.
        use_cache: always so; other values change nothing.

    Returns:
        `sequences`, int32 `[batch * num_return_sequences, seq]`, the prompts included.

    Raises:
        ValueError: one sentence on what does not fit: inputs, settings, a prompt and answer longer than the model's
            positions, caches larger than the memory; or the model gave NaN.
    """
    arguments = {name: value for name, value in locals().items() if name in SETTINGS} | unknown
    config = model.config
    vocabulary = config.vocab_size + config.additional_vocab_size
    hosts = Hosts(mesh_of(model))
    with hosts.errors_shared():
        chosen = settings(model.generation_config, generation_config, arguments)
        seed = number("seed", seed, RANGES["seed"])
        if chosen.num_beams > 1 and streamer is not None:
            raise ValueError("Beam search knows its tokens only at the end; leave out num_beams or the streamer.")
        eos = token_ids("eos_token_id", chosen.eos_token_id, tokenizer, vocabulary)
        pad = token_ids("pad_token_id", chosen.pad_token_id, tokenizer, vocabulary)
        pad = (pad or eos or [0])[0]
        words = word_ids(chosen.bad_words_ids, tokenizer, vocabulary)
        banned = token_ids("suppress_tokens", chosen.suppress_tokens, tokenizer, vocabulary)
        given = check_prompts(
            config,
            pad,
            eos,
            input_ids,
            attention_mask,
            inputs_embeds,
            image_attention_mask,
            may_be_none=hosts.several,
            pixel_values=pixel_values,
            image_encoder_embeddings=image_encoder_embeddings,
            perceiver_embeddings=perceiver_embeddings,
        )
        _check_cache(given, cache)
        sampling = make_sampling(
            vocabulary,
            make_stop_table(as_list(chosen.stop_strings), tokenizer, vocabulary),
            eos=eos,
            pad=pad,
            temperature=chosen.temperature,
            top_k=chosen.top_k,
            top_p=chosen.top_p,
            min_p=chosen.min_p,
            repetition_penalty=chosen.repetition_penalty,
            no_repeat_ngram_size=chosen.no_repeat_ngram_size,
            min_new_tokens=max(chosen.min_new_tokens, chosen.min_length - given.tokens.shape[1]),
            bad_words_ids=words,
            suppress_tokens=banned,
            seed=seed,
        )
    beams, copies = int(chosen.num_beams), int(chosen.num_return_sequences)
    modes = (beams, chosen.length_penalty, chosen.early_stopping, copies, chosen.do_sample, interpolate_pos_encoding)
    limits = (chosen.max_new_tokens, chosen.max_length)
    prompts = hosts.share(given, [*sampling, *modes, *limits, streamer is None, cache is None])
    limit = _limit(prompts, cache, config.max_position_embeddings, *limits)
    if chosen.min_new_tokens > limit:
        raise ValueError(
            f"min_new_tokens is {chosen.min_new_tokens}, above the {limit} tokens that an answer can have; "
            "raise max_new_tokens or lower it."
        )
    scores = context = None
    with on_mesh_of(model):
        kind = (beams, copies, chosen.do_sample, interpolate_pos_encoding, prompts.images_are, prompts.embeds is None)
        shapes = shapes_of(model, (*kind, *(None if array is None else array.shape for array in sampling)))
        reading = plan_reading(
            prompts, cache, limit, partial(shapes.fit, new_tokens=limit, parameters=_parameters(model))
        )
        hosts.check(partial(_check_memory, model, reading, max(beams, copies)))
        rules = make_beam_rules(chosen.length_penalty, chosen.early_stopping, reading.room)
        logits, read_cache = prefill_prompts(model, prompts, reading, cache, interpolate_pos_encoding)
        if beams > 1:
            fill = pad or (eos or [0])[0]  # the reference's choice, which takes a padding token of 0 for none
            answers, scores = search(model, logits, read_cache, reading, beams, copies, sampling, rules, limit, fill)
        else:
            if streamer is not None and prompts.embeds is None:
                streamer.put(given.tokens)
            answers, context = answer(
                model, logits, read_cache, reading, copies, sampling, limit, bool(chosen.do_sample), streamer
            )
    if prompts.embeds is None:
        answers = np.concatenate([np.repeat(given.tokens, copies, axis=0), answers], axis=1)
    return GenerationOutput(answers, scores, context) if chosen.return_dict_in_generate else answers


def _parameters(model: Any) -> int:
    """Weights that every token passes through."""
    return sum(leaf.size for leaf in jax.tree.leaves((model.model.decoder, model.head)))


def _check_memory(model: Any, reading: PrefillInputs, copies: int) -> None:
    """Refuses a call whose caches and temporary values are larger than what the loaded weights left free."""
    rows, columns = reading.tokens.shape
    image_slots = reading.image_mask.shape[2] * patches_per_image(model.config)
    mesh = mesh_of(model)
    needs = request_needs(model, mesh, Request(rows, rows * copies, columns, reading.slots, image_slots))
    check_memory("This call of generate", needs, mesh, model.config.dtype)


def _check_cache(prompts: Prompts, cache: ConversationCache | None) -> None:
    conversations = len(prompts.tokens) if cache is None else cache.own.stop - cache.own.start
    if len(prompts.tokens) != conversations:
        raise ValueError(
            f"The cache is of {conversations} conversations, and {len(prompts.tokens)} prompts were given."
        )


def _limit(
    prompts: Prompts,
    cache: ConversationCache | None,
    positions: int,
    max_new_tokens: int | None,
    max_length: int | None,
) -> int:
    """The most tokens to add."""
    counts = prompts.valid.sum(axis=1) + (0 if cache is None else cache.token_counts)
    row, columns = int(np.argmax(counts)), prompts.tokens.shape[1]
    if max_new_tokens is not None:
        limit = int(max_new_tokens)
    elif max_length is not None:
        if max_length <= columns:
            raise ValueError(f"max_length is {max_length}, and the prompt has {columns} tokens already.")
        limit = int(max_length) - columns
    else:
        limit = max(1, min(NEW_TOKENS, positions - int(counts[row])))
    if counts[row] + limit > positions:
        raise ValueError(
            f"Prompt {row} has {counts[row]:,} tokens and asks for {limit:,} more, but the model has only "
            f"{positions:,} positions; shorten the prompt or lower max_new_tokens."
        )
    return limit
