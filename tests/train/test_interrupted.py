"""Whatever ends a run, the same command goes on where its last checkpoint was, and nothing else changes."""

import json
import random
import re
import signal
import time

import numpy as np
import pytest

STEPS = {"steps": 12, "checkpoint__every": 3, "log_every": 1}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def expected(place):
    """The losses of a run that nothing stopped."""
    place.run("whole", **STEPS)
    return place.losses("whole")


def wait_for_step(place, out, step, process):
    """Until the run has logged that step."""
    log = place.directory / out / "metrics.jsonl"
    while not log.is_file() or f'"step": {step},' not in log.read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def test_sigterm_saves_and_another_mesh_goes_on(place, expected):
    process = place.start("stopped", **STEPS)
    wait_for_step(place, "stopped", 4, process)
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 75, printed
    assert "the same command goes on" in printed
    done = len(place.losses("stopped"))
    assert 4 <= done < 12
    assert (place.directory / "stopped" / "checkpoints" / str(done)).is_dir()
    place.run("stopped", 2, mesh__fsdp=2, **STEPS)
    losses = place.losses("stopped")
    assert losses[:done] == expected[:done], "bit for bit"
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(place, expected):
    place.run("damaged", **{**STEPS, "steps": 9, "optimizer__decay_steps": 12})
    checkpoints = place.directory / "damaged" / "checkpoints"
    for file in (checkpoints / "9" / "params").rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    printed = place.run("damaged", **STEPS)
    assert "Checkpoint 9 is damaged" in printed
    assert "9.damaged" in {path.name for path in checkpoints.iterdir()}
    assert place.losses("damaged") == expected, "bit for bit"


def test_a_run_that_is_done_stays_done(place, expected):
    export = place.directory / "exported"
    place.run("whole", **STEPS, export=export)
    assert place.losses("whole") == expected
    assert json.loads((export / "config.json").read_text())["model_type"] == "idefics"


def test_another_batch_size_is_refused(place, expected):
    printed = place.run("whole", status=1, **{**STEPS, "steps": 20, "batch_size": 4})
    assert "--batch-size 8, not 4" in printed
    assert place.losses("whole") == expected


@pytest.mark.soak
def test_killed_at_twenty_random_moments(place):
    steps = {"steps": 40, "checkpoint__every": 1}
    place.run("long", **steps)
    out, moments, reached = place.directory / "killed", random.Random(0), set()
    log = out / "metrics.jsonl"

    def saved():
        return max((int(path.name) for path in (out / "checkpoints").glob("*") if path.name.isdigit()), default=0)

    for _ in range(20):
        before, start = log.stat().st_mtime_ns if log.is_file() else 0, saved()
        process = place.start("killed", **steps)
        # Until it has done a step of its own: before that there is nothing to lose.
        while process.poll() is None and not (log.is_file() and log.stat().st_mtime_ns > before and last(log) > start):
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 3))
        process.kill()
        process.communicate()
        reached.add(saved())
    assert len(reached) > 5, "it got on between the kills"
    place.run("killed", **steps)
    assert place.losses("killed") == place.losses("long"), "bit for bit"


def last(log):
    """The last step of which a whole line is in the log."""
    steps = re.findall(r'^\{"step": (\d+),.*\}$', log.read_text(), re.MULTILINE)
    return int(steps[-1]) if steps else 0
