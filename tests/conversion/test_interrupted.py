"""Stopped at any moment, by whatever: the source untouched, nothing that a loader accepts, and --resume goes on."""

import json
import os
import random
import re
import resource
import shutil
import signal
import time

import orbax.checkpoint as ocp
import pytest

from conversion import convert as convert_module
from conversion.cli import main
from conversion.work import Work
from idefics_jax import IdeficsForVisionText2Text
from tests.support.conversion import assert_same_bits, contents, read_all, run, start
from tests.support.disk import small_disk
from tests.support.random_checkpoint import save_random_checkpoint

FORMS = ["orbax", "safetensors"]


def assert_nothing_loads(directory):
    """Neither our loader nor Orbax's takes what a stopped run left."""
    with pytest.raises((FileNotFoundError, ValueError)):
        IdeficsForVisionText2Text.from_pretrained(directory)
    if (directory / "params").exists():
        with ocp.StandardCheckpointer() as checkpointer, pytest.raises((ValueError, OSError, KeyError)):
            checkpointer.restore((directory / "params").absolute())


@pytest.fixture
def stop_after(monkeypatch):
    """Makes reading the source fail after a number of tensors."""

    def arrange(count):
        read, left = convert_module.read, [count]

        def failing(source, name):
            left[0] -= 1
            if left[0] < 0:
                raise convert_module.SourceError(f"{name} in {source.tensors[name].file} cannot be read: pulled out.")
            return read(source, name)

        monkeypatch.setattr(convert_module, "read", failing)
        return lambda: monkeypatch.setattr(convert_module, "read", read)

    return arrange


@pytest.mark.parametrize("form", FORMS)
def test_a_run_goes_on_where_it_stopped(conversion, checkpoint, tmp_path, small_units, stop_after, monkeypatch, form):
    out, before = tmp_path / "out", contents(checkpoint)
    command = ["convert", checkpoint, out, "--to", form, "--max-shard-size", "20KB"]
    mend = stop_after(100)
    assert "cannot be read: pulled out" in conversion(*command, status=1)
    mend()
    assert not out.exists()
    assert_nothing_loads(tmp_path / "out.partial")
    assert "out.partial is what a stopped run left; --resume goes on with it" in conversion(*command, status=1)

    done = {path.stem for path in (tmp_path / "out.partial" / ".progress").iterdir()} - {"job"}
    written = []
    write = {"orbax": convert_module.OrbaxTarget, "safetensors": convert_module.SafetensorsTarget}[form].write
    monkeypatch.setattr(
        f"conversion.targets.{write.__qualname__}",
        lambda self, unit, tensors: (written.append(unit.name), write(self, unit, tensors))[1],
    )
    conversion(*command, "--resume")
    assert len(done) > 2
    assert written
    assert not done & set(written)
    assert_same_bits(read_all(out), read_all(checkpoint))
    assert "bit-identical" in conversion("verify", out)
    assert contents(checkpoint) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "out"]
    assert not (out / ".progress").exists()
    assert "is complete already" in conversion(*command, "--resume")


@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_longer_as_it_was_written_is_done_again(
    conversion, checkpoint, tmp_path, small_units, stop_after, form
):
    command = ["convert", checkpoint, tmp_path / "out", "--to", form, "--max-shard-size", "20KB"]
    mend = stop_after(100)
    conversion(*command, status=1)
    mend()
    partial = tmp_path / "out.partial"
    done = sorted(path.stem for path in (partial / ".progress").iterdir() if path.stem != "job")
    if form == "safetensors":
        for name, change in zip(done, (lambda old: old[:-1] + b"?", lambda old: old[:-9], lambda _: b""), strict=False):
            (partial / name).write_bytes(change((partial / name).read_bytes()))
    else:
        shutil.rmtree(partial / "params" / "ocdbt.process_0")
    (partial / ".progress" / f"{done[-1]}.json").write_text('{"model.norm.wei')
    conversion(*command, "--resume")
    assert_same_bits(read_all(tmp_path / "out"), read_all(checkpoint))
    assert "bit-identical" in conversion("verify", tmp_path / "out")


def test_another_job_does_not_go_on_with_it(conversion, checkpoint, tmp_path, stop_after):
    command = ["convert", checkpoint, tmp_path / "out"]
    mend = stop_after(3)
    conversion(*command, status=1)
    mend()
    for change, named in (
        (["--dtype", "bfloat16"], "--dtype, tensors"),
        (["--to", "safetensors"], "--max-shard-size, --to"),
    ):
        err = conversion(*command, *change, "--resume", status=1)
        assert f"was begun with another {named}; repeat that command" in err
    conversion(*command, "--to", "safetensors", "--force")
    assert_same_bits(read_all(tmp_path / "out"), read_all(checkpoint))


def test_a_run_stopped_before_its_job_was_recorded_goes_on(conversion, checkpoint, tmp_path):
    command = ["convert", checkpoint, tmp_path / "out"]
    (tmp_path / "out.partial" / ".progress").mkdir(parents=True)
    (tmp_path / "out.partial" / ".progress" / "job.json").write_text('{"--dty')
    assert "out.partial is what a stopped run left; --resume goes on with it" in conversion(*command, status=1)
    conversion(*command, "--resume")
    assert_same_bits(read_all(tmp_path / "out"), read_all(checkpoint))


def test_what_is_there_is_kept_unless_forced(conversion, checkpoint, published, tmp_path):
    out = tmp_path / "out"
    conversion("convert", published, out)
    before = contents(out)
    assert "out exists already; choose another name, or --force" in conversion("convert", checkpoint, out, status=1)
    assert contents(out) == before
    conversion("convert", checkpoint, out, "--force", "--to", "safetensors")
    assert_same_bits(read_all(out), read_all(checkpoint))
    assert not (out / "params").exists()
    other = tmp_path / "other"
    other.mkdir()
    conversion("convert", checkpoint, other)  # an empty directory is in nobody's way
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    err = conversion("convert", checkpoint, tmp_path / "mine", "--force", status=1)
    assert "is not a checkpoint, so not even --force replaces it" in err
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_out_and_source_are_apart(conversion, checkpoint):
    before = contents(checkpoint)
    for out in (checkpoint, checkpoint / "out", checkpoint.parent):
        assert "overlap" in conversion("convert", checkpoint, out, "--force", status=1)
    assert contents(checkpoint) == before


# The disk


def test_a_disk_that_is_too_small_is_noticed_first(conversion, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    err = conversion("convert", checkpoint, tmp_path / "out", status=1)
    assert "out.partial needs 323.9 kB more, and 1.0 kB are free" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", FORMS)
def test_a_disk_that_refuses_in_mid_write(conversion, tmp_path, form):
    """The operating system lets no file grow past some bytes, less than the embedding has, as on a full disk."""
    checkpoint = save_random_checkpoint(tmp_path / "checkpoint", {"vocab_size": 512})
    command = ["convert", checkpoint, tmp_path / "out", "--to", form]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert limits[1] == resource.RLIM_INFINITY
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        err = conversion(*command, status=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "out.partial could not be written: " in err
    assert "File too large" in err
    assert err.strip().endswith("repeat the command with --resume.")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert_nothing_loads(tmp_path / "out.partial")
    conversion(*command, "--resume")
    assert_same_bits(read_all(tmp_path / "out"), read_all(checkpoint))


@pytest.mark.parametrize("form", FORMS)
def test_a_disk_that_is_full(checkpoint, conversion, tmp_path, monkeypatch, form):
    """A real one, whose space is not looked at first: as where something else fills it meanwhile."""
    monkeypatch.setattr(convert_module, "check_space", lambda folder, needed: None)
    with small_disk(tmp_path / "disk", 3 * 2**20) as disk:
        out = disk.path / "out"
        disk.fill(300_000)
        command = ["convert", checkpoint, out, "--to", form]
        err = conversion(*command, status=1)
        assert f"{disk.path / 'out.partial'} could not be written: " in err
        assert "No space left on device" in err
        assert err.count("\n") == 1
        assert not out.exists()
        assert_nothing_loads(disk.path / "out.partial")
        disk.empty()
        conversion(*command, "--resume")
        assert_same_bits(read_all(out), read_all(checkpoint))


# Signals


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def test_an_interrupt_is_quiet(conversion, large, tmp_path):
    process = start("convert", large, tmp_path / "out")
    wait_for(tmp_path / "out.partial" / ".progress" / "job.json", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
    conversion("convert", large, tmp_path / "out", "--resume")
    conversion("verify", large, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_killed_at_random_moments(large, tmp_path, form):
    """Killed 12 times in each form, resumed in between, until a run is left alone."""
    out, partial, draw = tmp_path / "out", tmp_path / "out.partial", random.Random(form)
    command = ["convert", large, out, "--to", form, "--max-shard-size", "50MB"]
    before, kills, duration = contents(large), 0, 1.0
    while kills < 12:
        process = start(*command, "--resume")
        wait_for(partial / ".progress" / "job.json", process)
        time.sleep(draw.uniform(0, duration))
        process.kill()
        _, err = process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0), err
        if out.exists():  # it was faster: what it left must be whole, and the next runs are stopped earlier
            assert "bit-identical" in run("verify", large, out)
            shutil.rmtree(out)
            shutil.rmtree(partial, ignore_errors=True)
            duration *= 0.7
            continue
        kills += 1
        if not (partial / "config.json").exists():  # else it is whole, and was about to be renamed
            assert_nothing_loads(partial)
        if kills % 4 == 0:
            shutil.rmtree(partial)
    run(*command, "--resume")
    assert contents(large) == before
    assert "bit-identical" in run("verify", large, out)
    assert "bit-identical" in run("verify", out)
    assert len(json.loads((out / "manifest.json").read_text())["tensors"]) == len(read_all(large))


def test_two_conversions_into_one_output(conversion, published, tmp_path, capsys):
    out = tmp_path / "out"
    with Work.at(out).locked():
        status = main(["convert", str(published), str(out), "--force"])
    assert status == 1
    said = rf"^conversion: \S+ is in use by convert, process {os.getpid()} on \S+, since .*\n$"
    assert re.match(said, capsys.readouterr().err)
    conversion("convert", published, out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "the lock is gone"
