"""Starts of a run, kept in its `run.json`: the settings of each, the step that it went on from, and what it trained on.

The settings of the latest start are at the top level; `starts` has every start's, the latest one last. An entry is
written when its first step begins, so that the file never names settings that nothing was trained with.
"""

import hashlib
import json
import platform
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax

from idefics_jax import IdeficsConfig, IdeficsProcessor
from idefics_jax.data.sources import Source
from idefics_jax.utils.paths import AnyPath, write_whole

from .config import TrainConfig

RUN, STARTS = "run.json", "starts"
HASHED_SOURCES = 32  # of which the first and the last record are hashed
#: Settings that give a checkpoint's numbers their meaning. `ema` counts by being set or not.
FIXED = (
    "seed",
    "batch_size",
    "trainable",
    "lora.rank",
    "lora.alpha",
    "lora.targets",
    "optimizer.name",
    "optimizer.first_moment",
)
#: Settings that say where and how a run is executed, not what it learns.
UNLISTED = ("out", "process.", "profile", "plan", "compiled", "slices", "pod", "recipe", "epochs", "export")


class Marks(NamedTuple):
    """Hashes of what a run's positions and weights refer to; empty where they are not known.

    Attributes:
        data: of the sources' sizes, weights and first and last records.
        records: number of training records.
        architecture: of the model's config.
        tokenizer: of its vocabulary.
    """

    data: str = ""
    records: int = 0
    architecture: str = ""
    tokenizer: str = ""


def marks(sources: list[Source], model: IdeficsConfig, processor: IdeficsProcessor) -> Marks:
    """Return the marks of a run."""
    sizes: list[Any] = [[len(source), source.mixture and source.mixture[1]] for source in sources]
    for place in range(min(HASHED_SOURCES, len(sources))):
        source = sources[place * len(sources) // min(HASHED_SOURCES, len(sources))]
        sizes += [_record(source, 0), _record(source, len(source) - 1)]
    structure = {name: value for name, value in asdict(model).items() if name not in ("dtype", "dropout")}
    tokenizer = processor.tokenizer.tokenizer.get_vocab(with_added_tokens=True)
    return Marks(_hash(sizes), sum(map(len, sources)), _hash(structure), _hash(tokenizer))


def _record(source: Source, number: int) -> Any:
    try:
        return source[number]
    except (ValueError, OSError):
        return None


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Start(NamedTuple):
    """A start of a run: the step it went on from, when, its settings and its marks."""

    step: int
    time: str
    settings: dict[str, Any]
    marks: Marks


def read_starts(directory: AnyPath) -> list[Start]:
    """Return the starts in a run's directory, none where its run.json is missing or damaged."""
    try:
        found = json.loads((directory / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if not isinstance(found, dict):
        return []
    starts = found.pop(STARTS, [])
    if not starts:  # of a version that kept no history
        return [Start(0, "", found, Marks())]
    try:
        return [Start(one["step"], one["time"], one["settings"], Marks(**one["marks"])) for one in starts]
    except (KeyError, TypeError):
        return []


def write_starts(directory: Path, starts: list[Start], config: TrainConfig, step: int, marks: Marks) -> None:
    """Add a start to run.json, whole or not at all; `starts`: those before.

    Raises:
        OSError: it cannot be written.
    """
    settings = config.to_dict()
    earlier = [one._asdict() | {"marks": one.marks._asdict()} for one in starts]
    new = {
        "step": step,
        "time": datetime.now().astimezone().isoformat(" ", "seconds"),
        "settings": settings,
        "marks": marks._asdict(),
        "versions": {
            "idefics-jax": version("idefics-jax"),
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
    }
    write_whole(directory / RUN, json.dumps({**settings, STARTS: [*earlier, new]}, indent=2) + "\n")


def check_same(place: AnyPath, starts: list[Start], config: TrainConfig, marks: Marks) -> str | None:
    """Compare a run's options with those of its latest start; return a sentence on what differs, None if nothing does.

    Raises:
        ValueError: what differs gives the checkpoint's numbers another meaning.
    """
    if not starts:
        return None
    begun = starts[-1]
    before, now = _flat(begun.settings), _flat(json.loads(json.dumps(config.to_dict())))
    different = [name for name in now if name in before and before[name] != now[name]]
    wrong = [f"{_option(name)} {_shown(before[name])}, not {_shown(now[name])}" for name in FIXED if name in different]
    if (before.get("ema") is None) != (now["ema"] is None):
        wrong.append(f"--ema {_shown(before.get('ema'))}, not {_shown(now['ema'])}")
    if begun.marks.data and begun.marks.data != marks.data:
        sizes = (
            f"{begun.marks.records:,} records, now {marks.records:,}" if begun.marks.records != marks.records else ""
        )
        wrong.append("other --data.train" + (f" ({sizes})" if sizes else ""))
    for name, option in ("architecture", "a --model of another architecture"), ("tokenizer", "another tokenizer"):
        if getattr(begun.marks, name) and getattr(begun.marks, name) != getattr(marks, name):
            wrong.append(option)
    if wrong:
        raise ValueError(
            f"{place} was begun with {'; '.join(wrong)}: what it has learned would lose its meaning; give what it "
            f"began with (its {RUN} has it), or another --out."
        )
    listed = [name for name in different if not name.startswith(UNLISTED)]
    if not listed:
        return None
    return ", ".join(f"{_option(name)} {_shown(now[name])} (was {_shown(before[name])})" for name in listed)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
