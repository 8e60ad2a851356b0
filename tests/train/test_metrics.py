"""What a run writes and shows."""

import base64
import errno
import io
import json
import os
import pty
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.support.terminal import read_to_end
from train import metrics
from train.metrics import Metrics, Prediction

STEP = {
    "loss": np.float32(2.5),
    "learning_rate": 1e-5,
    "gradient_norm": jnp.float32(0.5),
    "tokens_per_second": 12345.6,
    "images_per_second": 24.0,
    "mfu": 0.412,
    "skipped": False,
}
SAMPLE = Prediction("Question: what? <image>", "A dog.", "a dog", [np.zeros((224, 112, 3), np.uint8)])


def lines(directory, name="metrics.jsonl"):
    return [json.loads(line) for line in (directory / name).read_text().splitlines()]


def events(directory):
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted((directory / "tensorboard").iterdir()):
        data, place = file.read_bytes(), 0
        while place < len(data):
            length = int.from_bytes(data[place : place + 8], "little")
            yield Event.FromString(data[place + 12 : place + 12 + length])
            place += 16 + length


def test_each_step_is_a_line_of_plain_numbers(tmp_path):
    with Metrics(tmp_path / "run", 10, 0, visible=False) as run:
        run.log(1, STEP)
        run.log(2, STEP | {"loss": float("nan"), "mfu": None})
        run.evaluation(2, {"eval_loss": jnp.float32(2.25), "eval_exact_match": 0.5})
    first, second, held_out = lines(tmp_path / "run")
    assert first == {
        "step": 1,
        "loss": 2.5,
        "learning_rate": 1e-5,
        "gradient_norm": 0.5,
        "tokens_per_second": 12345.6,
        "images_per_second": 24.0,
        "mfu": 0.412,
        "skipped": False,
    }
    assert second["loss"] is None
    assert held_out == {"step": 2, "eval_loss": 2.25, "eval_exact_match": 0.5}


def test_a_run_that_goes_on_has_each_step_once(tmp_path):
    with Metrics(tmp_path, 6, 0, visible=False) as run:
        for step in range(1, 5):
            run.log(step, STEP)
            run.predictions(step, [SAMPLE])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # the process was killed here
    with Metrics(tmp_path, 6, 2, visible=False) as run:
        assert [line["step"] for line in lines(tmp_path)] == [1, 2]
        for step in range(3, 7):
            run.log(step, STEP)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines(tmp_path, "predictions.jsonl")] == [1, 2]
    restarts = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert restarts == [1, 3]


def test_predictions_hold_their_images(tmp_path):
    with Metrics(tmp_path, 6, 0, visible=False) as run:
        run.predictions(3, [SAMPLE])
    (line,) = lines(tmp_path, "predictions.jsonl")
    (url,) = line.pop("images")
    assert line == {
        "step": 3,
        "prompt": "Question: what? <image>",
        "answer": "A dog.",
        "reference": "a dog",
        "right": True,
    }
    kind, data = url.split(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (80, 160)
    assert SAMPLE._replace(answer="A cat").right is False
    assert SAMPLE._replace(reference="").right is None


def test_tensorboard_has_scalars_texts_and_images(tmp_path):
    with Metrics(tmp_path, 6, 0, visible=False) as run:
        run.log(1, STEP | {"mfu": None})
        run.evaluation(1, {"eval_loss": 2.0})
        run.predictions(1, [SAMPLE, SAMPLE._replace(answer="half a pair: \ud83d")])
    values = {value.tag: value for event in events(tmp_path) for value in event.summary.value}
    assert values["train/loss"].simple_value == 2.5
    assert values["train/skipped"].simple_value == 0
    assert values["eval/loss"].simple_value == 2.0
    assert "train/mfu" not in values
    assert b"**Answer:** A dog." in values["sample_0/text_summary"].tensor.string_val[0]
    assert values["sample_0/0"].image.width == 112
    assert lines(tmp_path, "predictions.jsonl")[1]["answer"] == "half a pair: ?"


def test_only_the_first_process_writes(tmp_path, capfd):
    with Metrics(tmp_path / "run", 6, 0, visible=True, enabled=False) as run:
        run.log(1, STEP)
        run.evaluation(1, {"eval_loss": 2.0})
        run.predictions(1, [SAMPLE])
    assert not (tmp_path / "run").exists()
    assert capfd.readouterr() == ("", "")


def test_a_full_disk_is_told_once_and_leaves_whole_lines(tmp_path):
    pytest.importorskip("resource")
    # The limit on files' sizes stands for a disk that takes a part of what is written, in a process of its own.
    program = f"""
import resource, sys
sys.modules["torch"] = None  # where it is installed, tensorboardX imports it, for seconds
from train.metrics import Metrics, Prediction
sample = [Prediction("What?", "A dog " * 20, "a dog", [])]
with Metrics({str(tmp_path)!r}, 9, 0, visible=False) as run:
    run.predictions(1, sample)
    run.log(1, {{"loss": 1.0}})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    for step in range(2, 10):
        run.log(step, {{"loss": 1.0}})
        run.predictions(step, sample)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    (warning,) = done.stderr.splitlines()
    assert warning.startswith(f"Metrics are missing from {tmp_path} from now on: ")
    assert warning.endswith("Training goes on.")
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    assert [line["step"] for line in lines(tmp_path, "predictions.jsonl")] == [1]


def test_tensorboard_goes_on_in_another_file_once_there_is_space(tmp_path, monkeypatch, caplog):
    from tensorboardX.record_writer import RecordWriter

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Metrics(tmp_path, 6, 0, visible=False) as run:
        run.log(1, STEP)
        with monkeypatch.context() as patch:
            patch.setattr(RecordWriter, "write", full)
            run.log(2, STEP)
            run.log(3, STEP)
        run.log(4, STEP)
    steps = {event.step for event in events(tmp_path) if event.summary.value}
    assert steps == {1, 4}
    assert len(lines(tmp_path)) == 4
    assert len(caplog.records) == 1


def test_without_a_terminal_there_is_a_line_now_and_then(tmp_path, capfd, monkeypatch):
    now = 0.0
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now)
    with Metrics(tmp_path, 100, 0, visible=True) as run:
        for step in range(1, 31):
            now += 1.0
            run.log(step, STEP)
    out, err = capfd.readouterr()
    assert out == ""
    shown = err.splitlines()
    assert [line.split()[1] for line in shown] == ["1/100", "11/100", "21/100", "30/100"]
    assert shown[0] == "step 1/100  loss 2.5000  12,346 tok/s  24.0 img/s  MFU 41.2%"
    assert shown[-1].endswith("  0:01:10 left")


def test_a_terminal_has_one_line_of_progress(tmp_path):
    program = f"""
import sys
sys.modules["torch"] = None  # where it is installed, tensorboardX imports it, for seconds
from train.metrics import Metrics
with Metrics({str(tmp_path)!r}, 20, 10, visible=True) as run:
    for step in range(11, 21):
        run.log(step, {{"loss": 1 / step, "tokens_per_second": 1e4, "mfu": None}})
    run.evaluation(20, {{"eval_loss": 0.5}})
print("done")
"""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "100", "TERM": "xterm"}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        shown = read_to_end(ours).decode()
        assert process.stdout.read() == b"done\n"
    assert process.returncode == 0
    assert "20/20 " in shown
    assert "loss 0.0500" in shown
    assert "10,000 tok/s" in shown
    assert "step 20: held-out loss 0.5" in shown
    assert "MFU" not in shown
