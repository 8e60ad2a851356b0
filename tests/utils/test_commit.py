"""A commit leaves the old files or the new ones, whatever moment its process is killed at."""

import errno
import os
import shutil
import signal
import sys
from functools import partial
from itertools import product
from pathlib import Path

import jax
import numpy as np
import pytest

from conversion.cli import main as conversion
from idefics_jax import IdeficsForVisionText2Text, IdeficsProcessor
from idefics_jax.checkpoints.pretrained import save_checkpoint
from idefics_jax.utils.commit import check_place, committed, publish, recover
from idefics_jax.utils.hub import checkpoint_directory
from tests.support.make_checkpoint import SMALL, make_checkpoint
from tests.support.random_checkpoint import save_random_checkpoint

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "tempfile.mkdtemp"}
OLD = {"config.json": "old", "a.txt": "old", "stale.txt": "old", "README.md": "mine"}
NEW = {"config.json": "new", "a.txt": "new", "b.txt": "new", "README.md": "mine"}


class Stopped(BaseException):
    """The end of a process, before one of its changes of files."""


class Kill:
    """Ends the process, or all its changes of files, at the n-th of them below a directory."""

    def __init__(self):
        self.below, self.left, self.action = None, 0, None
        sys.addaudithook(self.hook)

    def hook(self, event, arguments):
        if self.below is None:
            return
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (event in CHANGES or writes) and str(arguments[0]).startswith(self.below):
            self.left -= 1
            if self.left < 0:
                self.action()

    def at(self, count, below, run, action):
        """Run until the change with this number; returns False if it was too large."""
        self.below, self.left, self.action = str(below), count, action
        try:
            run()
        except Stopped:
            return True
        finally:
            self.below = None
        return self.left < 0


def stop():
    raise Stopped


@pytest.fixture(scope="module")
def kill():
    return Kill()


def contents(directory):
    return {path.name: path.read_text() for path in directory.iterdir() if path.is_file()}


def write(directory, files):
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_text(content)


def commit(directory):
    with committed(directory, lambda directory: ["stale.txt"]) as folder:
        write(folder, {name: content for name, content in NEW.items() if name != "README.md"})


def nested(directory):
    with committed(directory, lambda directory: ["stale.txt"]) as folder:
        with committed(folder) as inner:
            write(inner, {"a.txt": "new", "b.txt": "new"})
        with committed(folder) as inner:
            write(inner, {"config.json": "new"})


def renamed(directory):
    folder = directory.with_name("out.partial")
    write(folder, {name: content for name, content in NEW.items() if name != "README.md"})
    publish(folder, directory, lambda directory: ["stale.txt"])


def stopped(run, kill, count, below):
    """Stop all changes of this process from the n-th on; returns True if there were as many."""
    return kill.at(count, below, run, stop)


def killed(run, kill, count, below):
    """Run in a process of its own that kills itself at the n-th change; returns True if it did."""
    child = os.fork()
    if not child:
        kill.at(count, below, run, lambda: os.kill(os.getpid(), signal.SIGKILL))
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("end", [stopped, pytest.param(killed, marks=pytest.mark.slow)], ids=lambda end: end.__name__)
@pytest.mark.parametrize("run", [commit, nested, renamed], ids=lambda run: run.__name__)
@pytest.mark.filterwarnings("ignore:.*fork")
def test_ended_at_every_change(tmp_path, kill, run, end):
    """Whoever opens the directory sees all old files or all new ones; the next save tidies up."""
    seen, ended = [], True
    while ended:
        directory = tmp_path / str(len(seen)) / "out"
        write(directory, OLD)
        ended = end(lambda directory=directory: run(directory), kill, len(seen), tmp_path)
        missing = not (directory / "config.json").exists()
        if not missing:  # what another program may load is no mixture
            config = (directory / "config.json").read_text()
            assert contents(directory) == (OLD if config == "old" else NEW)
        recover(directory)
        assert contents(directory) in (OLD, NEW)
        seen.append((contents(directory) == NEW, missing))
        shutil.rmtree(directory.with_name("out.partial"), ignore_errors=True)
        run(directory)
        assert contents(directory) == NEW
        assert sorted(path.name for path in directory.iterdir()) == sorted(NEW), "no leavings"
        assert [path.name for path in directory.parent.iterdir()] == ["out"]
    news = [new for new, _ in seen]
    assert news == sorted(news), "old until the decision, new from then on"
    assert news.count(False) > 3
    assert sum(missing for _, missing in seen) > 2, "ended amid the moves too"


def test_the_first_commit_is_all_or_nothing(tmp_path, kill):
    ended, count = True, 0
    while ended:
        directory = tmp_path / str(count)
        ended = stopped(lambda directory=directory: commit(directory), kill, count, directory)
        if directory.exists():
            recover(directory)
            assert contents(directory) in ({}, {name: NEW[name] for name in NEW if name != "README.md"})
        count += 1
    assert len(contents(directory)) == 3


def fail(directory, error):
    with committed(directory) as folder:
        write(folder, NEW)
        raise error


def test_a_failed_commit_changes_nothing(tmp_path):
    write(tmp_path / "out", OLD)
    for error in (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyError("bug"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            fail(tmp_path / "out", error)
        assert contents(tmp_path / "out") == OLD
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(OLD)
    with pytest.raises(OSError, match="new could not be written: pulled out; nothing in it was changed"):
        fail(tmp_path / "new", OSError("pulled out"))
    assert not (tmp_path / "new").exists()


def fill(directory):
    with committed(directory) as folder, committed(folder):
        Path("/dev/full").write_text("x")


def test_the_sentence_names_place_failure_and_mend(tmp_path):
    (tmp_path / "file").touch()
    write(tmp_path / "out" / "a.txt", {"deep": "mine"})
    cases = {
        tmp_path / "file": f"^{tmp_path / 'file'} could not be written: File exists .move what is in the way",
        tmp_path / "file" / "out": "could not be written: Not a directory .move what is in the way",
        tmp_path / ("n" * 300): "could not be written: File name too long .choose a shorter name",
        tmp_path / "out": "could not be written: .*a.txt is a directory .move what is in the way.*nothing in it",
    }
    for place, sentence in cases.items():
        with pytest.raises(OSError, match=sentence) as caught:
            commit(place)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "out" / "a.txt" / "deep").read_text() == "mine"
    with pytest.raises(OSError, match=r"out could not be written: No space left on device \(free some space, or"):
        fill(tmp_path / "out")


def test_a_place_is_checked_before_work_is_spent_on_it(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    check_place(tmp_path / "new" / "deep")
    check_place("s3://bucket/out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]
    for place in (tmp_path / "file", tmp_path / "file" / "deep", tmp_path / "link", "/proc/self/out"):
        with pytest.raises(OSError, match="cannot be written: "):
            check_place(place)


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    with committed(tmp_path / "out") as folder:
        write(folder, {"a.txt": "first"})
        commit(tmp_path / "out")
        assert contents(folder) == {"a.txt": "first"}
        (tmp_path / "out" / ".saving-killed").mkdir()
    assert contents(tmp_path / "out")["a.txt"] == "first"
    commit(tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == ["a.txt", "b.txt", "config.json"]


def test_a_commit_of_somebody_else_touches_nothing_outside(tmp_path):
    """Opening a directory from anywhere finishes its commit: names that lead out of it are passed over."""
    write(tmp_path / "mine", OLD)
    write(tmp_path / "out" / ".saved", {"a.txt": "new", ".replaces.json": '["../mine", "..", "/", "../mine/a.txt", 3]'})
    recover(tmp_path / "out")
    assert contents(tmp_path / "mine") == OLD
    assert contents(tmp_path / "out") == {"a.txt": "new"}
    (tmp_path / "out" / ".saved").symlink_to(tmp_path / "mine")
    recover(tmp_path / "out")
    assert contents(tmp_path / "mine") == OLD


# Checkpoints


SIZES = {"one file": 10**9, "several": 80_000}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models of different shapes, and each in one file and in several."""
    folder, found = tmp_path_factory.mktemp("models"), []
    for name, changes in {"old": SMALL, "new": SMALL | {"num_hidden_layers": 1}}.items():
        model = IdeficsForVisionText2Text.from_pretrained(save_random_checkpoint(folder / "source" / name, changes))
        for form, size in SIZES.items():
            model.save_pretrained(folder / name / form, max_shard_size=size)
        found.append(model)
    return *found, folder


def all_bytes(directory):
    """Every file that is not hidden."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize(
    "forms",
    [
        pytest.param(x, marks=pytest.mark.slow if x[0] == x[1] or x[0] == "several" else ())
        for x in product(SIZES, SIZES)
    ],
    ids=" over ".join,
)
def test_a_save_over_an_older_checkpoint_stopped_at_every_change(tmp_path, kill, models, forms):
    _, model, folder = models
    new, old = (all_bytes(folder / name / form) for name, form in zip(("new", "old"), forms, strict=True))
    seen, ended = [], True
    while ended:
        directory = Path(shutil.copytree(folder / "old" / forms[1], tmp_path / str(len(seen))))
        write(directory, {"README.md": "mine"})
        save = partial(model.save_pretrained, directory, max_shard_size=SIZES[forms[0]])
        ended = stopped(save, kill, len(seen), directory)
        checkpoint_directory(directory)  # what everything is loaded through
        found = all_bytes(directory)
        assert found.pop("README.md") == b"mine"
        assert found in (old, new)
        seen.append(found == new)
    assert seen == sorted(seen)
    assert {True, False} == set(seen)
    shutil.rmtree(directory)
    shutil.copytree(folder / "old" / forms[1], directory)
    stopped(save, kill, seen.count(False) - 1, directory)
    assert any(path.name.startswith(".saving-") for path in directory.iterdir())
    save()
    assert all_bytes(directory) == new
    IdeficsForVisionText2Text.from_pretrained(directory)


def test_a_model_and_its_processor_appear_together(tmp_path, kill, models):
    _, other, _ = models
    made = make_checkpoint(tmp_path / "made", changes=SMALL)
    processor = IdeficsProcessor.from_pretrained(made)
    save_checkpoint(tmp_path / "new", other, processor)
    new, old = all_bytes(tmp_path / "new"), all_bytes(made)
    assert {"tokenizer.json", "preprocessor_config.json", "config.json", "model.safetensors"} <= new.keys()
    after = {name: data for name, data in old.items() if not name.startswith("model")} | new
    for count in (3, 30, 60, 70, 75, 80, 85, 90):
        directory = Path(shutil.copytree(made, tmp_path / str(count)))
        stopped(partial(save_checkpoint, directory, other, processor), kill, count, directory)
        checkpoint_directory(directory)
        assert all_bytes(directory) in (old, after)


def test_a_save_over_an_orbax_checkpoint_is_what_loads(tmp_path, models):
    """The manifest goes too, since its checksums are those of other weights; somebody else's stays."""
    _, new, folder = models
    assert conversion(["convert", str(folder / "source" / "old"), str(tmp_path / "ours")]) == 0
    shutil.copytree(tmp_path / "ours", tmp_path / "other")
    (tmp_path / "other" / "manifest.json").write_text('{"name": "app"}')
    for name, stays in (("ours", False), ("other", True)):
        new.save_pretrained(tmp_path / name)
        assert not (tmp_path / name / "params").exists()
        assert (tmp_path / name / "manifest.json").exists() == stays
        loaded = IdeficsForVisionText2Text.from_pretrained(tmp_path / name)
        jax.tree.map(np.testing.assert_array_equal, loaded, new)
