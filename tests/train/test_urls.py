"""Runs whose model, data, checkpoints, logs and export are in an object store: servers on this machine, over TCP."""

import json
import signal
import time

import pytest

from tests.train.runs import Place
from tests.train.stores import BUCKET, files, store

STEPS = {"steps": 8, "checkpoint__every": 2}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def expected(place):
    """The losses of a run on a disk that nothing stopped, which exports."""
    place.run("whole", export=place.directory / "exported", data__eval=place.eval, **STEPS)
    return place.losses("whole")


@pytest.fixture(scope="module", params=["s3", "gs"])
def kind(request, place, tmp_path_factory):
    """Of a store with the model and the data in it."""
    with store(request.param, tmp_path_factory.mktemp("server") / "log"):
        for name in ("model", "train", "eval"):
            files(request.param).put(str(place.directory / name), f"{BUCKET}/{name}", recursive=True)
        yield request.param


def there(kind):
    """Options of a run with everything in the store."""
    url = f"{kind}://{BUCKET}"
    return {"model": f"{url}/model", "data__train": f"{url}/train", "data__eval": f"{url}/eval"}


def lines(kind, name):
    return [json.loads(line) for line in files(kind).cat(f"{BUCKET}/{name}").decode().splitlines()]


def losses(kind, out):
    found = [(line["step"], line["loss"]) for line in lines(kind, f"{out}/metrics.jsonl") if "loss" in line]
    assert [step for step, _ in found] == list(range(1, len(found) + 1)), "each step once"
    return [loss for _, loss in found]


def finished(kind, out):
    """The steps of the checkpoints that are whole."""
    names = files(kind).glob(f"{BUCKET}/{out}/checkpoints/*/commit_success.txt")
    return sorted(int(name.split("/")[-2]) for name in names)


def test_a_run_is_stopped_goes_on_elsewhere_and_exports(kind, place, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    url = f"{kind}://{BUCKET}/run"
    options = {**STEPS, **there(kind), "export": f"{kind}://{BUCKET}/exported"}
    process = place.start(url, **options)
    while not files(kind).exists(f"{BUCKET}/run/checkpoints/2/commit_success.txt"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 75, printed
    assert not list(tmp_path.glob("run-*")), "what is in the store is not left here"
    done = len(losses(kind, "run"))
    assert finished(kind, "run")[-1] == done < 8
    place.run(url, **options)
    assert losses(kind, "run") == expected, "bit for bit, and from another directory"
    assert finished(kind, "run") == [6, 8]
    names = {name.split("/")[-1] for name in files(kind).ls(f"{BUCKET}/run", detail=False)}
    assert {"report.html", "run.json", "summary.json", "tensorboard", "predictions.jsonl"} <= names
    files(kind).get(f"{BUCKET}/exported", str(tmp_path / "back"), recursive=True)
    for file in (place.directory / "exported").iterdir():
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes(), file.name
    place.run(url, **options)
    assert losses(kind, "run") == expected, "a run that is done stays done"
