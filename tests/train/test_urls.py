"""Runs whose model, data, checkpoints, logs and export are in an object store: servers on this machine, over TCP."""

import json
import pickle
import re
import shutil
import signal
import tarfile
import time

import datasets
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from idefics_jax.data.forms import document_of
from idefics_jax.data.records import check_data, open_sources
from idefics_jax.data.sources import data_url
from idefics_jax.processing.image_processor import IdeficsImageProcessor
from tests.support.stores import BUCKET, Proxy, environment, files, store
from train.data.images import image_pixels

STEPS = {"steps": 8, "checkpoint__every": 2}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def expected(place):
    """The losses of a run on a disk that nothing stopped, which exports."""
    place.run("whole", export=place.directory / "exported", data__eval=place.eval, **STEPS)
    return place.losses("whole")


@pytest.fixture(scope="module", params=["s3", "gs"])
def served(request, place, tmp_path_factory):
    """A store with the model and the data in it: its kind and port."""
    with store(request.param, tmp_path_factory.mktemp("server") / "log") as port:
        for name in ("model", "train", "eval"):
            files(request.param).put(str(place.directory / name), f"{BUCKET}/{name}", recursive=True)
        yield request.param, port


@pytest.fixture
def kind(served):
    """Of the store."""
    return served[0]


@pytest.fixture
def proxy(served, monkeypatch):
    """What is between the store and the processes that a test starts."""
    kind, port = served
    proxy = Proxy(port)
    reach(monkeypatch, kind, proxy.port)
    yield proxy
    proxy.close()


def reach(patch, kind, port):
    for name, value in environment(kind, port).items():
        patch.setenv(name, value)


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


def write_sources(folder, images):
    """Every kind of data, of a folder of images with questions."""
    shutil.copytree(images, folder / "folder")
    records = [json.loads(line) for line in (images / "metadata.jsonl").read_text().splitlines()][:3]
    lines = [record | {"file_name": f"folder/{record['file_name']}"} for record in records]
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for shard in range(2):
        with tarfile.open(folder / f"shard-{shard}.tar", "w") as tar:
            for number, record in enumerate(records[:2]):
                (folder / "record.json").write_text(json.dumps({"answer": record["answer"]}))
                tar.add(folder / "record.json", f"{number}.json")
                tar.add(images / record["file_name"], f"{number}.png")
    contents = [(images / record["file_name"]).read_bytes() for record in records]
    writer = ArrayRecordWriter(str(folder / "records.array_record"), "group_size:1")
    for record, content in list(zip(records, contents, strict=True))[:2]:
        writer.write(json.dumps({"image": data_url(content), "answer": record["answer"]}).encode())
    writer.close()
    columns = {
        "image": [{"bytes": content, "path": None} for content in contents],
        "answer": [record["answer"] for record in records],
    }
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).save_to_disk(str(folder / "saved"))
    return folder


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


def test_every_kind_of_data_there_is_the_same_as_here(kind, place, tmp_path):
    folder = write_sources(tmp_path / "kinds", place.train)
    files(kind).put(str(folder), f"{BUCKET}/kinds", recursive=True)
    names = ("lines.jsonl", "*.tar", "records.array_record", "saved", "folder")
    here = open_sources([str(folder / name) for name in names])
    there = open_sources([f"{kind}://{BUCKET}/kinds/{name}" for name in names])
    assert [len(source) for source in there] == [len(source) for source in here] == [3, 2, 2, 2, 3, 60]
    small = IdeficsImageProcessor(28)
    for local, remote in zip(here, there, strict=True):
        for number in range(len(local)):
            assert remote[number] == local[number]
            (image,) = document_of(remote[number], remote.folder, "<image>{answer}").images
            (expected,) = document_of(local[number], local.folder, "<image>{answer}").images
            assert image_pixels(image, small).tobytes() == image_pixels(expected, small).tobytes()
    assert pickle.loads(pickle.dumps(there[0]))[0] == here[0][0], "for worker processes"
    with pytest.raises(FileNotFoundError, match="No file matches"):
        open_sources([f"{kind}://{BUCKET}/kinds/*.zip"])
    with pytest.raises(FileNotFoundError, match="There is no"):
        check_data([f"{kind}://{BUCKET}/nothing=0.5"], None)


def test_a_connection_that_is_cut_in_mid_write_is_made_again(served, proxy, place, expected):
    """Whenever so many bytes have been written, the connection is dropped in the middle of a request."""
    kind, port = served
    proxy.cut(after=1_000_000, times=4)
    place.run(f"{kind}://{BUCKET}/cut", **STEPS, **there(kind))
    assert proxy.times < 2, "it was cut three times or more"
    with pytest.MonkeyPatch.context() as patch:
        reach(patch, kind, port)
        assert losses(kind, "cut") == expected, "bit for bit"
        assert finished(kind, "cut") == [6, 8]


def test_a_store_that_stays_away_is_one_clear_error(served, proxy, place, tmp_path, monkeypatch):
    kind, port = served
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    # TensorStore tries for a quarter of an hour; what Orbax writes by itself, before and after, fails within seconds.
    options = {"steps": 30, "checkpoint__every": 10}
    process = place.start(f"{kind}://{BUCKET}/away", **options)
    while not finished(kind, "away"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    proxy.close()
    _, printed = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "Traceback" not in printed
    assert re.search(
        rf"^train: Checkpoints in {kind}://\S+ cannot be written: .* were finished are whole", printed, re.M
    )
    assert "What could not be copied" in printed
    assert list(tmp_path.glob("run-*/away/metrics.jsonl")), "kept here"
    with pytest.MonkeyPatch.context() as patch:
        reach(patch, kind, port)
        assert finished(kind, "away") == [10]
        place.run(f"{kind}://{BUCKET}/away", **options)
        assert finished(kind, "away") == [20, 30], "it goes on from there"
        assert len(losses(kind, "away")) == 30
