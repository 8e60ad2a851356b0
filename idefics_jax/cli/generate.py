"""`idefics-jax generate`: one prompt, answered."""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from idefics_jax.cli.answer import PrintStreamer, Silent, StopStringFilter
from idefics_jax.cli.devices import joined
from idefics_jax.cli.loading import check_settings, choosing, draws, fill_in, load_model, load_processor
from idefics_jax.cli.standard_input import read_all
from idefics_jax.config import IdeficsConfig
from idefics_jax.data.text import parse_json, read_json
from idefics_jax.processing.chat import message_parts
from idefics_jax.processing.images import image_source
from idefics_jax.processing.processor import IdeficsProcessor
from idefics_jax.utils.progress import activity

if TYPE_CHECKING:
    from idefics_jax.parallel.memory import Request


def run(options: argparse.Namespace) -> int:
    """Prints the answers, or a plan; the prompt is read before the model, so that a mistake in it shows at once.

    Of several processes the first one does; the others only compute.

    Raises:
        ValueError, OSError: one sentence on what is wrong.
    """
    fill_in(options)
    _check(options)
    if options.plan is not None:
        from idefics_jax.cli.plan import run as plan

        processor = load_processor(options.model, options.high_depth)
        return plan(options, processor, read_prompt(options, processor))
    with joined(options) as prints:
        _answer(options, prints)
    return 0


def _answer(options: argparse.Namespace, prints: bool) -> None:
    processor = load_processor(options.model, options.high_depth)
    inputs = read_prompt(options, processor) if prints else {"input_ids": np.zeros((0, 1), np.int32)}
    request = None if options.coordinator is not None else partial(_request, options, inputs)  # all alike or none
    model = load_model(options.model, options.dtype, options.mesh, request)
    rules = choosing(options, processor)
    with activity("Generating", visible=prints and sys.stderr.isatty()) as stop_activity:
        streamer = None
        if options.stream:
            streamer = PrintStreamer(processor.tokenizer, options.stop, stop_activity) if prints else Silent()
        output = model.generate(
            **inputs,
            **rules,
            length_penalty=options.length_penalty,
            streamer=streamer,
            return_dict_in_generate=True,
        )
    if options.stream or not prints:
        return
    answers = [
        make_answer(processor, inputs["input_ids"][0], row, rules["eos_token_id"], options) for row in output.sequences
    ]
    if options.json:
        if output.sequences_scores is not None:
            answers = [
                answer | {"score": float(score)} for answer, score in zip(answers, output.sequences_scores, strict=True)
            ]
        prompt = {"tokens": inputs["input_ids"][0].tolist(), "images": int(inputs["image_attention_mask"].any(1).sum())}
        print(json.dumps({"prompt": prompt, "answers": answers}, ensure_ascii=False))
    else:
        print("\n\n".join(answer["text"] for answer in answers))


def _request(options: argparse.Namespace, inputs: dict[str, np.ndarray], config: IdeficsConfig) -> "Request":
    """The least that the prompt and the options ask of the model."""
    from idefics_jax.generation.context import least_request

    prompts, tokens = inputs["input_ids"].shape
    return least_request(
        config,
        prompts=prompts,
        copies=max(options.num_beams, options.num_return_sequences),
        tokens=tokens,
        images=inputs["image_attention_mask"].shape[2] if "image_attention_mask" in inputs else 0,
        new_tokens=options.max_new_tokens,
    )


def read_prompt(options: argparse.Namespace, processor: IdeficsProcessor) -> dict[str, np.ndarray]:
    """The model's inputs for `--prompt` or `--question` and `--image`, or for `--messages`."""
    if options.question is not None:
        content = message_parts(options.question, [image_source(image) for image in options.image])
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return processor([prompt])
    if options.messages is None:
        text = read_all().removesuffix("\n") if options.prompt == "-" else options.prompt
        return processor(text, images=options.image)
    name = "Standard input" if options.messages == "-" else options.messages
    if options.messages != "-":
        messages = read_json(Path(options.messages))
    else:
        try:
            messages = parse_json(read_all())
        except ValueError as error:
            raise ValueError(f"{name} is not JSON: {error}.") from error
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError(f'{name} must be a list of messages, such as [{{"role": "user", "content": "Hello."}}].')
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    return processor([prompt])


def make_answer(
    processor: IdeficsProcessor, prompt: np.ndarray, row: np.ndarray, eos: list[int], options: argparse.Namespace
) -> dict[str, Any]:
    """One answer of `--json`: its text, its tokens, and whether it ended by itself ("stop") or not ("length")."""
    tokens = row[len(prompt) :].tolist()
    finished = len(tokens) < options.max_new_tokens
    while tokens and tokens[-1] == processor.tokenizer.pad_token_id:  # follows the end of the shorter ones
        tokens.pop()
    text = StopStringFilter(processor.tokenizer, prompt, options.stop)
    content = "".join([text.put(token) for token in tokens]) + text.end()
    finished |= text.stopped or (bool(tokens) and tokens[-1] in eos)
    return {"text": content, "tokens": tokens, "finish_reason": "stop" if finished else "length"}


def _check(options: argparse.Namespace) -> None:
    """What `generate` would refuse too, but only once the model is loaded, and in Python's words."""
    several = options.num_return_sequences > 1
    if options.messages is not None and options.image:
        raise ValueError("--image goes with --prompt or --question; name the images of --messages in the messages.")
    if options.num_beams > 1 and draws(options):
        raise ValueError("--num-beams takes the likeliest tokens; leave it out, or --temperature and the like.")
    if options.stream and (several or options.num_beams > 1):
        raise ValueError("--stream prints one answer as it is made; leave out --num-beams and --num-return-sequences.")
    if options.min_new_tokens > options.max_new_tokens:
        raise ValueError(
            f"--min-new-tokens is {options.min_new_tokens}, more than --max-new-tokens, {options.max_new_tokens}."
        )
    if several and not draws(options) and options.num_beams == 1:
        raise ValueError("Without drawing there is one answer; add --temperature or --num-beams.")
    check_settings(options)
