"""Whole runs in one directory: what is refused, what a full disk leaves, and what diverges."""

import json
import re
import shutil

import pytest
from safetensors.numpy import load_file, save_file

from idefics_jax.utils.lock import locked
from tests.support.disk import small_disk
from tests.support.make_checkpoint import make_checkpoint
from tests.support.tiny_tokenizer import save_tiny_tokenizer
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


@pytest.fixture(scope="module")
def models(place):
    """A model of another architecture, one of another tokenizer, and one of other weights alone."""
    folder = place.directory
    deeper = make_checkpoint(folder / "deeper", changes={"perceiver_config": {"resampler_depth": 3}})
    tokenizer, weights = (shutil.copytree(place.model, folder / name) for name in ("tokens", "weights"))
    save_tiny_tokenizer(tokenizer, False)
    shard = next(weights.glob("model-00001*"))
    save_file({name: -tensor for name, tensor in load_file(shard).items()}, shard)
    return {"deeper": deeper, "tokens": tokenizer, "weights": weights}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 5}, "--seed 13, not 5"),
        ({"data__train": "eval"}, "other --data.train (60 records, now 6)"),
        ({"model": "deeper"}, "a --model of another architecture"),
        ({"model": "tokens"}, "another tokenizer"),
    ],
)
def test_another_meaning_is_refused_and_nothing_overwritten(place, train, models, changes, words):
    before = contents(place.directory / "run")
    folders = {"eval": place.eval, **models}
    changes = {name: folders.get(value, value) for name, value in changes.items()}
    status, printed = train(steps=2, **changes)
    assert status == 1
    assert f"run was begun with {words}: what it has learned would lose its meaning" in printed
    assert contents(place.directory / "run") == before


def test_other_weights_of_the_same_model_are_listed(place, train, models):
    """What was trained is in the checkpoint; what is frozen is the other model's from then on."""
    shutil.copytree(place.directory / "run", place.directory / "moved")
    status, printed = train("moved", steps=2, model=models["weights"])
    assert status == 0, printed
    assert f"with --model {models['weights']} (was {place.model}), --steps 2 (was 1)" in printed
    starts = json.loads((place.directory / "moved" / "run.json").read_text())["starts"]
    assert [start["settings"]["model"] for start in starts] == [str(place.model), str(models["weights"])]


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


def test_a_disk_that_is_really_full(place, train, tmp_path):
    """Whatever is written first, what was saved before is whole, and with some space the same command goes on."""
    with small_disk(tmp_path / "disk", 64 * 2**20) as disk:
        out = shutil.copytree(place.directory / "run", disk.path / "run")
        export = disk.path / "model"
        before = contents(out / "checkpoints" / "1")
        for left in (0, 20_000, 400_000):
            disk.fill(left)
            status, printed = train(out, steps=2, export=export)
            assert status == 1
            assert re.search(
                rf"{disk.path}\S* (in \S* )?(cannot|could not) be written: .*(full|No space left)", printed
            )
            assert contents(out / "checkpoints" / "1") == before
            assert not (export / "config.json").exists()
            disk.empty()
        status, printed = train(out, steps=2, export=export)
        assert status == 0, printed
        assert (export / "model.safetensors").is_file()


def test_options_from_a_run(place, session, train):
    recorded = place.directory / "run" / "run.json"
    status, printed = session.run(["--config", str(recorded), "--out", str(place.directory / "again")])
    assert status == 0, printed
    before, again = (json.loads((place.directory / out / "run.json").read_text()) for out in ("run", "again"))
    assert {**before, "out": "", "starts": []} == {**again, "out": "", "starts": []}


def test_the_end_is_saved_where_its_step_was_skipped_with_a_finite_loss(place, train):
    """A z-loss of such weight has gradients whose squares overflow."""
    shutil.copytree(place.directory / "run", place.directory / "skipped")
    status, printed = train("skipped", steps=2, z_loss=1e30)
    assert status == 0, printed
    last = json.loads((place.directory / "skipped" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["step"], last["skipped"]) == (2, 1)
    assert last["loss"] > 0
    assert (place.directory / "skipped" / "checkpoints" / "2").is_dir()


def test_what_diverges_is_not_exported(place, train):
    export = place.directory / "diverged-model"
    status, printed = train("diverged", steps=3, export=export, optimizer__learning_rate=1e30)
    assert status == 1
    assert "not finite" in printed
    assert "nothing of them was kept, saved or exported" in printed
    assert not export.exists()
    assert {path.name for path in (place.directory / "diverged" / "checkpoints").iterdir()} == {"1"}
