"""From the options of `idefics-jax eval` to a protocol, with the choices of IDEFICS's authors where none is made."""

import argparse
import zlib
from collections.abc import Iterable
from typing import Any

from idefics_jax.data.text import read_json
from idefics_jax.evaluation.examples import Data, Example
from idefics_jax.evaluation.protocol import TEXT_ONLY_SHOTS, EvalConfig
from idefics_jax.evaluation.templates import DEFAULTS, TEMPLATES, make_template, own_template
from idefics_jax.processing.processor import IdeficsProcessor
from idefics_jax.processing.prompts import FAKE_TOKEN, IMAGE_TOKEN
from idefics_jax.utils.paths import as_path

BAD_WORDS = ("\n", "\n\n", IMAGE_TOKEN, FAKE_TOKEN)
MAX_PROMPT = {"captions": 1024}  # 2048 otherwise
NOT_OF_THE_ANSWERS = {"command", "arguments", "out", "shots", "max_bad", "positive", "mesh", "coordinator"}
NOT_OF_THE_ANSWERS |= {"processes", "process", "remote_images"}


def make_protocol(
    options: argparse.Namespace, data: Data, support: Data | None, processor: IdeficsProcessor
) -> EvalConfig:
    """The choices of the command line, with the authors' where it makes none.

    Raises:
        ValueError, OSError: a choice that there is not, or that does not fit another.
    """
    name = options.prompt or DEFAULTS[options.task]
    if name not in TEMPLATES:
        raise ValueError(f"There is no prompt {name!r}; there are {', '.join(TEMPLATES)}.")
    form = options.prompt_form or ("instruct" if processor.end_of_utterance else "base")
    if form == "instruct" and not processor.end_of_utterance:
        raise ValueError(f"{options.model} has no token that ends an utterance; --prompt-form instruct needs it.")
    own = None if options.prompt_form else own_template(processor.tokenizer.config, name)
    stop_words = None if options.stop is None else tuple(word for word in options.stop if word)
    closed = any(example.candidates is not None for example in data.examples)
    if options.positive is not None and not any(
        options.positive in (example.candidates or ()) for example in data.examples
    ):
        raise ValueError(f"--positive is {options.positive!r}, which is no candidate.")
    bad_words = BAD_WORDS if options.bad_word is None else tuple(word for word in options.bad_word if word)
    return EvalConfig(
        task=options.task,
        template=make_template(name, form, options.prefix, options.example, stop_words, own),
        names=_names(options, [data] if support is None else [data, support]),
        zero_shot=options.zero_shot or ("none" if closed or own is not None else "text-only"),
        select=options.select,
        seed=options.seed,
        batch_size=options.batch_size,
        max_prompt=options.max_prompt or MAX_PROMPT.get(options.task, 2048),
        num_beams=options.num_beams,
        max_new_tokens=options.max_new_tokens,
        length_penalty=options.length_penalty,
        early_stopping=options.early_stopping,
        bad_words=bad_words,
        mean=options.normalize == "mean",
    )


def _names(options: argparse.Namespace, parts: list[Data]) -> dict[str, str]:
    """What the prompt calls the classes: `--classes`, or a class's own name with spaces for underscores."""
    if options.classes is not None:
        names = read_json(as_path(options.classes))
        if not isinstance(names, dict) or not all(isinstance(name, str) and name for name in names.values()):
            raise ValueError(f'{options.classes} must be an object of names, such as {{"n02084071": "dog"}}.')
        return names
    if options.task != "classification":
        return {}
    return {
        name: name.replace("_", " ")
        for part in parts
        for example in part.examples[:1]  # all have all classes
        for name in example.candidates or ()
    }


def check_shots(options: argparse.Namespace, protocol: EvalConfig, support: Data | None, same: bool) -> None:
    """Whether the support set has what the shots need; `same` where the queries are among it.

    Raises:
        ValueError: it has not, or there is none.
    """
    most = max(options.shots)
    text_only = 0 in options.shots and protocol.zero_shot == "text-only"
    if support is None:
        if most:
            raise ValueError(f"{most} shots need a support set to come from; pass --support.")
        if text_only:
            raise ValueError(
                "0 shots, as IDEFICS's authors have them, show two examples of a support set without their images; "
                "pass --support, or --zero-shot none for a bare question."
            )
        return
    needed = max(most, TEXT_ONLY_SHOTS if text_only else 0)
    usable = len(support.examples) - same
    if needed > usable:
        raise ValueError(f"The support set has {usable} examples to show, and {needed} shots are asked for.")
    if needed and (unanswered := [example.id for example in support.examples if not example.references]):
        raise ValueError(f"The support set has no answer to {unanswered[0]}; shots need annotated answers.")


def settings(options: argparse.Namespace, protocol: EvalConfig, data: Data, support: Data | None) -> dict[str, Any]:
    """What a run's answers depend on, named as the options are."""
    chosen = {name: value for name, value in vars(options).items() if name not in NOT_OF_THE_ANSWERS}
    resolved = {name: value for name, value in protocol._asdict().items() if name not in ("names", "template", "mean")}
    chosen |= {name: value for name, value in resolved.items() if name in chosen}
    prefix, example, stop = protocol.template
    chosen |= {"prefix": prefix, "example": example, "stop": stop, "bad_word": protocol.bad_words}
    result = {"task" if name == "task" else f"--{name.replace('_', '-')}": value for name, value in chosen.items()}
    result["the contents of --data"] = _digest(data.examples)
    result["the contents of --support"] = None if support is None else _digest(support.examples)
    result["the names of classes"] = zlib.crc32(repr(sorted(protocol.names.items())).encode(errors="replace"))
    return result


def _digest(examples: Iterable[Example]) -> int:
    digest, before = 0, None
    for example in examples:
        # All images may have the same thousand classes: they are counted once.
        known = example._replace(candidates=None) if example.candidates is before else example
        digest, before = zlib.crc32(repr(known).encode(errors="replace"), digest), example.candidates
    return digest
