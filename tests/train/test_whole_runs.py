"""Whole runs in one directory: what is refused, what a full disk leaves, and what diverges."""

import json

import pytest

from idefics_jax.utils.lock import locked
from tests.support.train_runs import Session

SHORT = {
    "steps": 1,
    "batch_size": 2,
    "data__max_images": 1,
    "data__sequence_length": 32,
    "checkpoint__every": 1,
    "log_every": 1,
    "optimizer__schedule": "constant",  # which compiles the same step for any number of steps
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def session():
    with Session() as session:
        yield session


@pytest.fixture(scope="module")
def train(place, session):
    """Train into a directory of the module's own, which the first test finds with one step done."""

    def train(out="run", largest=None, **changes):
        return session.run(place.options(out, **SHORT | changes), largest)

    status, printed = train()
    assert status == 0, printed
    return train


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_second_run_at_the_same_time(place, train):
    before = contents(place.directory / "run")
    with locked(place.directory / "run", "train"):
        status, printed = train(steps=2)
    assert status == 1
    assert "run is in use by train, process" in printed
    assert contents(place.directory / "run") == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"seed": 5}, "--seed 13, not 5"), ({"data__train": "eval"}, "other --data.train (60 records, now 6)")],
)
def test_another_meaning_is_refused_and_nothing_overwritten(place, train, changes, words):
    before = contents(place.directory / "run")
    changes = {name: place.eval if value == "eval" else value for name, value in changes.items()}
    status, printed = train(steps=2, **changes)
    assert status == 1
    assert f"run was begun with {words}: what it has learned would lose its meaning" in printed
    assert contents(place.directory / "run") == before


def test_no_room_for_a_checkpoint_or_the_model(place, train):
    checkpoints = place.directory / "run" / "checkpoints"
    before = contents(checkpoints / "1")
    status, printed = train(largest=100_000, steps=2)
    assert status == 1
    assert f"Checkpoints in {checkpoints} cannot be written: the file system takes no file of that size; " in printed
    assert contents(checkpoints / "1") == before
    export = place.directory / "model-1"
    status, printed = train(largest=100_000, export=export)
    assert status == 1
    assert f"{export} could not be written: File too large (raise the limit of file sizes, or" in printed
    assert not export.exists()
    assert train(export=export)[0] == 0
    assert (export / "model.safetensors").is_file()


def test_options_from_a_run(place, session, train):
    recorded = place.directory / "run" / "run.json"
    status, printed = session.run(["--config", str(recorded), "--out", str(place.directory / "again")])
    assert status == 0, printed
    before, again = (json.loads((place.directory / out / "run.json").read_text()) for out in ("run", "again"))
    assert {**before, "out": "", "starts": []} == {**again, "out": "", "starts": []}


def test_what_diverges_is_not_exported(place, train):
    export = place.directory / "diverged-model"
    status, printed = train("diverged", steps=3, export=export, optimizer__learning_rate=1e30)
    assert status == 1
    assert "not finite" in printed
    assert "nothing of them was kept, saved or exported" in printed
    assert not export.exists()
    assert {path.name for path in (place.directory / "diverged" / "checkpoints").iterdir()} == {"1"}
