"""`idefics-jax eval`: a benchmark's questions, answered and scored."""

import argparse
import shlex
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from idefics_jax.cli.devices import joined
from idefics_jax.cli.loading import load_model, note
from idefics_jax.evaluation.examples import Data, Example, Id, Problem, read_json, without_missing_images
from idefics_jax.evaluation.protocol import TEXT_ONLY_SHOTS, Protocol
from idefics_jax.evaluation.results import predictions, score
from idefics_jax.evaluation.store import Answer, Store, write_json
from idefics_jax.evaluation.tasks import read_data
from idefics_jax.evaluation.templates import DEFAULTS, TEMPLATES, make_template
from idefics_jax.paths import as_path
from idefics_jax.processor import IdeficsProcessor
from idefics_jax.progress import count_progress
from idefics_jax.prompts import FAKE_TOKEN, IMAGE_TOKEN

BAD_WORDS = ("\n", "\n\n", IMAGE_TOKEN, FAKE_TOKEN)
MAX_PROMPT = {"captions": 1024}  # 2048 otherwise
NOT_OF_THE_ANSWERS = {"command", "arguments", "out", "shots", "max_bad", "positive", "mesh", "coordinator"}
NOT_OF_THE_ANSWERS |= {"processes", "process"}
PROBLEMS_SHOWN = 10


def run(options: argparse.Namespace) -> int:
    """Answers what has no answer yet in the run's folder, scores all, and prints a table.

    Of several processes the first one reads and writes the folder; all read the data.

    Returns:
        1 if more of the data is bad than `--max-bad` allows, else 0.

    Raises:
        ValueError, OSError: one sentence on what is wrong.
    """
    with joined(options) as first:
        return _run(options, first)


def _run(options: argparse.Namespace, first: bool) -> int:
    given = read_data(options.task, options.data, options.images, options.image_name, options.split, options.limit)
    data = without_missing_images(given)
    same = options.support is not None and _support_is_data(options)
    support = _support(options, same)
    processor = IdeficsProcessor.from_pretrained(options.model)
    protocol = make_protocol(options, data, support, processor)
    _check_shots(options, protocol, support, same)
    problems = {"--data": data.problems}
    counts = {"--data": len(data.examples) + len(data.problems)}
    if support is not None and not same:
        problems["--support"] = support.problems
        counts["--support"] = len(support.examples) + len(support.problems)
    store = Store(Path(options.out), _settings(options, protocol, given, support)) if first else None
    if store is not None:
        store.write_problems([problem for part in problems.values() for problem in part])
    for name, count in counts.items():
        if len(problems[name]) > options.max_bad * count:
            raise ValueError(_too_many(options, problems[name], count, name))
    answers = _answer_all(options, data, support, same, processor, protocol, store)
    if store is None:
        return 0
    return _finish(options, protocol, data, answers, store, problems.get("--support", []))


def _support_is_data(options: argparse.Namespace) -> bool:
    return [as_path(file) for file in options.support] == [as_path(file) for file in options.data] and (
        options.support_split in (None, options.split)
    )


def _support(options: argparse.Namespace, same: bool) -> Data | None:
    """The support set; None where none is given."""
    if options.support is None:
        return None
    split = options.support_split if options.support_split is not None else options.split if same else None
    images, name = options.support_images, options.support_image_name
    # The default is the folder of the support's own files, unless --images says where images are.
    images, name = images or options.images, name or options.image_name
    return without_missing_images(read_data(options.task, options.support, images, name, split))


def make_protocol(
    options: argparse.Namespace, data: Data, support: Data | None, processor: IdeficsProcessor
) -> Protocol:
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
    stop_words = None if options.stop is None else tuple(word for word in options.stop if word)
    candidates = {name for example in data.examples for name in example.candidates or ()}
    if options.positive is not None and options.positive not in candidates:
        raise ValueError(f"--positive is {options.positive!r}, which is no candidate.")
    bad_words = BAD_WORDS if options.bad_word is None else tuple(word for word in options.bad_word if word)
    return Protocol(
        task=options.task,
        template=make_template(name, form, options.prefix, options.example, stop_words),
        names=_names(options, [data] if support is None else [data, support]),
        zero_shot=options.zero_shot or ("none" if candidates else "text-only"),
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


def _check_shots(options: argparse.Namespace, protocol: Protocol, support: Data | None, same: bool) -> None:
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


def _settings(options: argparse.Namespace, protocol: Protocol, data: Data, support: Data | None) -> dict[str, Any]:
    """What a run's answers depend on, named as the options are."""
    chosen = {name: value for name, value in vars(options).items() if name not in NOT_OF_THE_ANSWERS}
    resolved = {name: value for name, value in protocol._asdict().items() if name not in ("names", "template", "mean")}
    chosen |= {name: value for name, value in resolved.items() if name in chosen}
    prefix, example, stop = protocol.template
    chosen |= {"prefix": prefix, "example": example, "stop": stop, "bad_word": protocol.bad_words}
    settings = {"task" if name == "task" else f"--{name.replace('_', '-')}": value for name, value in chosen.items()}
    settings["the contents of --data"] = _digest([*data.examples, *sorted(protocol.names.items())])
    settings["the contents of --support"] = None if support is None else _digest(support.examples)
    return settings


def _digest(content: Iterable[Any]) -> int:
    digest = 0
    for part in content:
        digest = zlib.crc32(repr(part).encode(errors="replace"), digest)
    return digest


def _too_many(options: argparse.Namespace, problems: list[Problem], count: int, name: str) -> str:
    return (
        f"{len(problems):,} of the {count:,} examples of {name} are bad, the first because: {problems[0].text} "
        f"{Path(options.out) / 'problems.jsonl'} lists them; --max-bad allows more than {options.max_bad:g} of all."
    )


def _answer_all(
    options: argparse.Namespace,
    data: Data,
    support: Data | None,
    same: bool,
    processor: IdeficsProcessor,
    protocol: Protocol,
    store: Store | None,
) -> dict[int, dict[Any, Answer]]:
    """All answers by shots; those that are missing are asked for and kept."""
    from idefics_jax.evaluation.runner import Support, ask, everyone_knows
    from idefics_jax.evaluation.states import ImageStates

    model = states = None
    examples = [] if support is None else support.examples
    places = {example.id: place for place, example in enumerate(examples)} if same else {}
    shown, query_features = Support(examples, places, None), None
    answers: dict[int, dict[Any, Answer]] = {}
    for shots in options.shots:
        known = {} if store is None else store.read(shots)
        # What went wrong, an image that could not be read, is tried again.
        answered = {id for id, answer in known.items() if answer.problem is None}
        done = everyone_knows([example.id in answered for example in data.examples])
        answers[shots] = known
        if all(done):
            continue
        if model is None:
            model = load_model(options.model, options.dtype, options.mesh)
            states = ImageStates(model, processor.image_processor) if options.coordinator is None else None
        if shots and protocol.select == "rices" and query_features is None:
            query_features, features = _features(options, model, processor, data.examples, examples, store)
            shown = shown._replace(features=features)
        asked = ask(
            model,
            processor,
            protocol,
            data.examples,
            shown,
            shots,
            [example.id for example, is_done in zip(data.examples, done, strict=True) if is_done],
            query_features,
            states,
        )
        visible = store is not None and sys.stderr.isatty()
        with count_progress(f"{shots} shots", len(done), visible) as advance:
            advance(int(sum(done)))
            for batch in asked:
                if store is not None:
                    store.append(shots, batch)
                known.update((answer.id, answer) for answer in batch)
                advance(len(batch))
    return answers


def _features(
    options: argparse.Namespace,
    model: Any,
    processor: IdeficsProcessor,
    queries: list[Example],
    support: list[Example],
    store: Store | None,
) -> tuple[dict[Id, np.ndarray], np.ndarray]:
    """A vector for each query, by its id, and for each support example: the mean of its images', of length 1."""
    from idefics_jax.evaluation.features import image_features

    paths = list(dict.fromkeys(path for example in [*queries, *support] for path in example.images))
    # Several processes must compute the same ones, and one of them may have lost what it kept.
    folder = store.folder if store is not None and options.coordinator is None else None
    with count_progress("Features", len(paths), store is not None and sys.stderr.isatty()) as advance:
        found, _ = image_features(model, processor.image_processor, paths, folder, advance)
    rows = {path: row for row, path in enumerate(paths)}

    def vector(example: Example) -> np.ndarray:
        total = found[[rows[path] for path in example.images]].sum(axis=0)
        return total / max(float(np.linalg.norm(total)), 1e-12)

    return {query.id: vector(query) for query in queries}, np.stack([vector(example) for example in support])


def _finish(
    options: argparse.Namespace,
    protocol: Protocol,
    data: Data,
    answers: dict[int, dict[Any, Answer]],
    store: Store,
    of_support: list[Problem],
) -> int:
    """Writes what the answers come to and prints the table.

    Args:
        of_support: what is wrong with the support set.
    """
    from idefics_jax.evaluation.report import write_report

    results, records, main = [], {}, None
    worst, count = data.problems, len(data.examples) + len(data.problems)
    for shots in options.shots:
        found = answers[shots]
        bad = [
            Problem(answer.problem[0], answer.id, answer.problem[1])
            for answer in found.values()
            if answer.problem is not None
        ]
        records[shots], scores = score(options.task, data.examples, found, options.positive, options.seed)
        main = main or next(iter(scores), None)
        results.append(
            {
                "shots": shots,
                "count": len(records[shots]),
                "bad": len(bad) + len(data.problems),
                "truncated": sum(answer.truncated for answer in found.values()),
                "scores": scores,
            }
        )
        write_json(store.folder / f"predictions-{shots}.json", predictions(data, found))
        worst = max(worst, [*data.problems, *bad], key=len)
    store.write_problems([*worst, *of_support])
    shown = [problem.text for problem in [*worst, *of_support][:PROBLEMS_SHOWN]]
    summary = {
        "task": options.task,
        "model": options.model,
        "command": shlex.join(["idefics-jax", *options.arguments]),
        "settings": _shown_settings(protocol),
        "main": main,
        "results": results,
        "problems": {"count": len(worst) + len(of_support), "share": len(worst) / max(count, 1), "first": shown},
    }
    write_json(store.folder / "summary.json", summary)
    write_report(store.folder / "report.html", summary, records)
    _print_table(summary)
    if worst or of_support:
        note(f"{len(worst) + len(of_support):,} bad examples; {store.folder / 'problems.jsonl'} lists them.")
    if len(worst) > options.max_bad * count:
        note(f"idefics-jax: {_too_many(options, worst, count, '--data')}")
        return 1
    return 0


def _shown_settings(protocol: Protocol) -> dict[str, Any]:
    settings = {name: value for name, value in protocol._asdict().items() if name not in ("names", "template")}
    return settings | protocol.template._asdict()


def _print_table(summary: dict[str, Any]) -> None:
    """The scores, one line for each number of shots, on standard output."""
    from rich.console import Console
    from rich.table import Table

    names = list(dict.fromkeys(name for result in summary["results"] for name in result["scores"]))
    table = Table("shots", "answers", *names)
    for result in summary["results"]:
        scores = [result["scores"].get(name) for name in names]
        cells = ["" if x is None else f"{x['value']:.1f} ({x['low']:.1f} to {x['high']:.1f})" for x in scores]
        table.add_row(str(result["shots"]), f"{result['count']:,}", *cells)
    Console(file=sys.stdout).print(table)
