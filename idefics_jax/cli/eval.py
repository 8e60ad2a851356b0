"""`idefics-jax eval`: a benchmark's questions, answered and scored."""

import argparse
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from idefics_jax.cli.devices import joined
from idefics_jax.cli.eval_choices import check_shots, make_protocol, settings
from idefics_jax.cli.eval_outcome import finish, is_too_many, too_many
from idefics_jax.cli.loading import load_model, load_processor
from idefics_jax.config import IdeficsConfig
from idefics_jax.data.records import say_unread
from idefics_jax.evaluation.examples import Data, Example, Id, without_missing_images
from idefics_jax.evaluation.protocol import EvalConfig
from idefics_jax.evaluation.store import Answer, Store
from idefics_jax.evaluation.tasks import read_data
from idefics_jax.evaluation.templates import names_in
from idefics_jax.processing.processor import IdeficsProcessor
from idefics_jax.utils.lock import locked
from idefics_jax.utils.paths import as_path
from idefics_jax.utils.progress import count_progress

if TYPE_CHECKING:
    from idefics_jax.parallel.memory import Request


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
    data = without_missing_images(given, options.remote_images)
    same = options.support is not None and _support_is_data(options)
    support = _support(options, same)
    processor = load_processor(options.model, options.high_depth, options.remote_images)
    protocol = make_protocol(options, data, support, processor)
    check_shots(options, protocol, support, same)
    if first:
        columns = {name: None for example in given.examples for name in example.fields}
        named = names_in(protocol.template.prefix + protocol.template.example)
        say_unread(options.data[0], [name for name in columns if name not in named])
    problems = {"--data": data.problems}
    counts = {"--data": len(data.examples) + len(data.problems)}
    if support is not None and not same:
        problems["--support"] = support.problems
        counts["--support"] = len(support.examples) + len(support.problems)
    with locked(options.out, "eval") if first else nullcontext():
        store = Store(Path(options.out), settings(options, protocol, given, support)) if first else None
        if store is not None:
            store.write_problems([problem for part in problems.values() for problem in part])
        for name, count in counts.items():
            if is_too_many(options, problems[name], count):
                raise ValueError(too_many(options, problems[name], count, name))
        answers = _answer_all(options, data, support, same, processor, protocol, store)
        if store is None:
            return 0
        return finish(options, protocol, data, answers, store, problems.get("--support", []))


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
    return without_missing_images(read_data(options.task, options.support, images, name, split), options.remote_images)


def _answer_all(
    options: argparse.Namespace,
    data: Data,
    support: Data | None,
    same: bool,
    processor: IdeficsProcessor,
    protocol: EvalConfig,
    store: Store | None,
) -> dict[int, dict[Any, Answer]]:
    """All answers by shots; those that are missing are asked for and kept."""
    from idefics_jax.evaluation.runner import Support, ask, everyone_knows
    from idefics_jax.evaluation.states import ImageFeatureCache

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
            model = load_model(options.model, options.dtype, options.mesh, partial(_request, protocol, data))
            states = ImageFeatureCache(model, processor.image_processor) if options.coordinator is None else None
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


def _request(protocol: EvalConfig, data: Data, config: IdeficsConfig) -> "Request":
    """The least that a batch asks of the model."""
    from idefics_jax.generation.context import least_request

    prompts = min(protocol.batch_size, len(data.examples))
    if data.examples[0].candidates is not None:
        return least_request(config, prompts=prompts)
    beams, new_tokens = protocol.num_beams, protocol.max_new_tokens
    return least_request(config, prompts=prompts, copies=beams, new_tokens=new_tokens)


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
