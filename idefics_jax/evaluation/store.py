"""The folder of a run: what it was started with, and its answers as they come, so that it can go on after a kill."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from idefics_jax.evaluation.examples import Id, Problem
from idefics_jax.utils.paths import naming, write_whole

RUN = "run.json"


class Answer(NamedTuple):
    """A line of `answers-SHOTS.jsonl`.

    Attributes:
        id: the example's.
        answer: as it is scored; None where there is none.
        log_likelihoods: of the candidates, in their order; None where the answer is free.
        shots: ids of the support examples shown.
        truncated: whether the prompt was cut.
        problem: its kind and a sentence, where there is no answer.
    """

    id: Id
    answer: str | None
    log_likelihoods: tuple[float, ...] | None
    shots: tuple[Id, ...]
    truncated: bool
    problem: tuple[str, str] | None


class Store:
    """The folder.

    Raises:
        ValueError: another run is in it, with one sentence on what differs.
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        wanted = json.loads(json.dumps(settings))
        path = folder / RUN
        answered = any(file.stat().st_size for file in folder.glob("answers-*.jsonl"))
        if answered and path.is_file():
            try:
                begun = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{path} is not JSON ({error}); remove the folder, or name another --out.") from error
            for name in sorted(wanted.keys() | begun.keys()):
                if wanted.get(name) != begun.get(name):
                    raise ValueError(
                        f"{folder} holds a run with {name} {_shown(begun.get(name))}, and this one has "
                        f"{_shown(wanted.get(name))}; name another --out."
                    )
        elif answered:
            raise ValueError(f"{folder} holds answers but no {RUN}; name another --out.")
        else:
            write_json(path, wanted)

    def path(self, shots: int) -> Path:
        """The file of the answers with so many shots."""
        return self.folder / f"answers-{shots}.jsonl"

    def read(self, shots: int) -> dict[Id, Answer]:
        """The answers so far, by id. A line that a killed process left broken is taken off the file's end."""
        path, answers = self.path(shots), {}
        if not path.is_file():
            return answers
        with path.open("rb+") as file:
            whole = 0
            for line in file:
                answer = _parsed(line)
                if answer is None:
                    break
                answers[answer.id] = answer
                whole += len(line)
            file.truncate(whole)
        return answers

    def append(self, shots: int, answers: Iterable[Answer]) -> None:
        """Adds answers; they are on the disk when it returns."""
        lines = "".join(json.dumps(answer._asdict(), ensure_ascii=False) + "\n" for answer in answers)
        with naming(self.path(shots)), self.path(shots).open("ab") as file:
            file.write(lines.encode(errors="replace"))  # half a surrogate pair is no UTF-8
            file.flush()
            os.fsync(file.fileno())

    def write_problems(self, problems: Iterable[Problem]) -> None:
        """Writes `problems.jsonl`, one line each."""
        path = self.folder / "problems.jsonl"
        with naming(path), path.open("w", encoding="utf-8", errors="replace") as file:
            file.writelines(json.dumps(problem._asdict(), ensure_ascii=False) + "\n" for problem in problems)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    write_whole(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def _parsed(line: bytes) -> Answer | None:
    """A whole line's answer."""
    if not line.endswith(b"\n"):
        return None
    try:
        value = Answer(**json.loads(line))
    except (ValueError, TypeError):
        return None
    likelihoods = None if value.log_likelihoods is None else tuple(value.log_likelihoods)
    problem = None if value.problem is None else (value.problem[0], value.problem[1])
    return value._replace(log_likelihoods=likelihoods, shots=tuple(value.shots), problem=problem)


def _shown(value: Any) -> str:
    if value is None:
        return "left out"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
