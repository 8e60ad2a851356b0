"""`idefics-jax eval` from its files to its scores."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from idefics_jax.cli import main
from idefics_jax.evaluation import runner
from idefics_jax.evaluation.features import image_features
from idefics_jax.evaluation.metrics import exact_match, vqa_accuracy
from idefics_jax.evaluation.scoring import log_likelihoods
from idefics_jax.utils.lock import locked
from tests.evaluation.conftest import IMAGES
from tests.support.commands import check_sentence, two_processes
from tests.support.disk import small_disk

WORDS = ("cat", "dog", "street", "rain", "sail")
#: What most runs ask for, so that they share their programs.
QUICK = ("--num-beams", 1, "--max-new-tokens", 6)


@pytest.fixture(scope="module")
def files(photos):
    """The files of every task over the same images, in their folder."""
    numbers = range(IMAGES)
    answers = [[WORDS[n % 5]] * 7 + [WORDS[(n + 1) % 5]] * 3 for n in numbers]
    asked = [
        {"question_id": 100 + n, "image_id": n, "question": f"What is {'really ' * (n % 4)}here?"} for n in numbers
    ]
    noted = [{"question_id": 100 + n, "image_id": n, "answers": [{"answer": a} for a in answers[n]]} for n in numbers]
    captions = [
        {"image_id": n, "caption": f"a {WORDS[(n + k) % 5]} in the {WORDS[n % 5]}"} for n in numbers for k in range(3)
    ]
    contents = {
        "questions.json": {"questions": asked},
        "annotations.json": {"annotations": noted},
        "captions.json": {
            "images": [{"id": n, "file_name": f"{n}.png"} for n in numbers],
            "annotations": captions,
        },
    }
    for name, content in contents.items():
        (photos / name).write_text(json.dumps(content))
    lines = {
        "labels.jsonl": [{"image": f"{n}.png", "label": ("red_fox", "dog", "cat")[n % 3]} for n in numbers],
        "match.jsonl": [
            {"image": f"{n}.png", "question": "Is it so?", "candidates": ["no", "yes"], "answer": ("no", "yes")[n % 2]}
            for n in numbers
        ],
        "open.jsonl": [{"image": f"{n}.png", "question": f"What is {n}?", "answers": [WORDS[n % 5]]} for n in numbers],
    }
    for name, content in lines.items():
        (photos / name).write_text("\n".join(map(json.dumps, content)) + "\n")
    return photos


@pytest.fixture
def evaluate(base, files, tmp_path, capsys):
    """Runs `idefics-jax eval` in the folder of the data; gives its folder, what it printed and its remarks."""

    def run(task, *arguments, status=0, out="run", model=base):
        code = main(command(task, *arguments, out=tmp_path / out, model=model, files=files))
        printed, err = capsys.readouterr()
        assert code == status, err
        assert not (status and printed and "bad" not in err), "nothing on standard output"
        return tmp_path / out, printed, err

    return run


DATA = {
    "vqa": (["questions.json", "annotations.json"], ["--image-name", "{image_id}.png"]),
    "captions": (["captions.json"], []),
    "classification": (["labels.jsonl"], []),
    "jsonl": (["match.jsonl"], []),
}


def command(task, *arguments, out, model, files):
    """The arguments of a run whose support set is its data, unless they say otherwise."""
    names, more = DATA[task]
    given = [str(files / name) for name in names]
    arguments = [str(argument) for argument in arguments]
    if "--data" not in arguments:
        arguments = ["--data", *given, *arguments]
    if "--support" not in arguments and "no support" not in arguments:
        arguments += ["--support", *arguments[arguments.index("--data") + 1 :][: len(given)]]
    arguments = [argument for argument in arguments if argument != "no support"]
    if "--batch-size" not in arguments:
        arguments += ["--batch-size", "4"]
    return ["eval", task, "--model", str(model), "--out", str(out), "--dtype", "float32", *arguments, *more]


def read_json(folder, name):
    return json.loads((folder / name).read_text())


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_id(folder, shots):
    return {line["id"]: line for line in lines_of(folder / f"answers-{shots}.jsonl")}


IMG = "<fake_token_around_image><image><fake_token_around_image>"
VQA_PREFIX = "<s>Instruction: provide an answer to the question. Use the image to answer.\n"


def generated(model, processor, text, images):
    """The answer by the library's own parts, from a prompt's text: three beams of at most 15 tokens."""
    pixels = processor.image_processor.preprocess([str(image) for image in images])
    ids = np.array([processor.tokenizer.encode(text)] * 4, np.int32)  # four, as the run's batches: with its programs
    seen = np.cumsum(ids == processor.image_token_id, axis=1)
    tokens = model.generate(
        ids,
        pixel_values=np.stack([pixels] * 4),
        image_attention_mask=seen[..., None] == np.arange(1, 1 + len(images)),
        num_beams=3,
        max_new_tokens=15,
        early_stopping=True,
        bad_words_ids=[processor.tokenizer.encode(word) for word in ("\n", "\n\n", "<image>")] + [[512]],
    )
    text = processor.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True)
    for stop in ("Question", "User", "Image", "task", "What", "Who", "When", "Where", "Why", "How"):
        text = text.split(stop)[0]
    return text.strip()


@pytest.fixture(scope="module")
def vqa(base, files, tmp_path_factory):
    """A run of `eval vqa`: its folder, what it printed, its remarks, and the sizes of the batches it asked."""
    folder = tmp_path_factory.mktemp("vqa") / "run"
    arguments = command("vqa", "--shots", "0,2", out=folder, model=base, files=files)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        batches = counted(patch)
        assert main(arguments) == 0
    return folder, out.getvalue(), err.getvalue(), batches


def counted(patch):
    """The sizes of the batches that the model answers from now on."""
    counted = []
    answered = runner._answered

    def count(*arguments):
        counted.append(len(arguments[3].queries))
        return answered(*arguments)

    patch.setattr(runner, "_answered", count)
    return counted


def test_vqa(vqa, model, processor, files):
    folder, out, err, batches = vqa
    assert batches == [4] * 6
    asked = read_json(files, "questions.json")["questions"]
    answers = by_id(folder, 0)
    assert answers.keys() == {question["question_id"] for question in asked}
    # 0 shots: the first two others, without their images.
    first = "Image:Question: What is here? Answer: cat\nImage:Question: What is really here? Answer: dog\n"
    for number in (3, 6):
        text = f"{VQA_PREFIX}{first}Image:{IMG}Question: {asked[number]['question']} Answer:"
        assert answers[100 + number]["answer"] == generated(model, processor, text, [files / f"{number}.png"])
        assert answers[100 + number]["shots"] == [100, 101]
    assert answers[100]["shots"] == [101, 102]
    # 2 shots: those that were drawn, with their most frequent answers.
    line = by_id(folder, 2)[105]
    shown = [id - 100 for id in line["shots"]]
    assert len(set(shown)) == 2
    assert 5 not in shown
    text = "".join(f"Image:{IMG}Question: {asked[n]['question']} Answer: {WORDS[n % 5]}\n" for n in shown)
    text = f"{VQA_PREFIX}{text}Image:{IMG}Question: {asked[5]['question']} Answer:"
    assert line["answer"] == generated(model, processor, text, [files / f"{n}.png" for n in [*shown, 5]])
    # What is made of the answers.
    predictions = read_json(folder, "predictions-2.json")
    assert predictions == [{"question_id": id, "answer": by_id(folder, 2)[id]["answer"]} for id in range(100, 112)]
    summary = read_json(folder, "summary.json")
    references = {n: [WORDS[n % 5]] * 7 + [WORDS[(n + 1) % 5]] * 3 for n in range(IMAGES)}
    for result, metric in ((0, vqa_accuracy), (1, vqa_accuracy)):
        found = by_id(folder, (0, 2)[result])
        values = [100 * metric(found[100 + n]["answer"], references[n]) for n in range(IMAGES)]
        assert summary["results"][result]["scores"]["VQA accuracy"]["value"] == pytest.approx(np.mean(values))
    assert summary["main"] == "VQA accuracy"
    assert [result["shots"] for result in summary["results"]] == [0, 2]
    assert summary["command"].startswith("idefics-jax eval vqa --model ")
    assert (folder / "report.html").is_file()
    assert not err
    assert "VQA accuracy" in out
    assert out.count("│ 12 ") == 2


def test_cider_of_one_image_is_0_and_said_to_be(evaluate):
    arguments = ("--zero-shot", "none", "no support", "--num-beams", 1, "--max-new-tokens", 1)
    folder, _, err = evaluate("captions", *arguments, "--limit", 1)
    assert "CIDEr-D of one image is 0" in err
    assert "CIDEr-D of one image is 0" in (folder / "report.html").read_text(encoding="utf-8")
    _, _, err = evaluate("captions", *arguments, "--limit", 4, out="four")
    assert "CIDEr-D of one image" not in err


def test_captions(evaluate, files):
    folder, out, _ = evaluate("captions", "--shots", "1", *QUICK)
    predictions = read_json(folder, "predictions-1.json")
    assert [prediction["image_id"] for prediction in predictions] == list(range(IMAGES))
    assert all(isinstance(prediction["caption"], str) for prediction in predictions)
    assert list(read_json(folder, "summary.json")["results"][0]["scores"]) == ["CIDEr-D", "BLEU-4", "ROUGE-L"]
    assert "CIDEr-D" in out


def test_classification_with_the_nearest_shots(evaluate, model, processor, files):
    folder, _, _ = evaluate("classification", "--shots", "0,3", "--select", "rices")
    paths = [str(files / f"{n}.png") for n in range(IMAGES)]
    features, _ = image_features(model, processor.image_processor, paths, None)
    similar = features @ features.T
    np.fill_diagonal(similar, -1)
    answers = by_id(folder, 3)
    for number in range(IMAGES):
        nearest = np.argsort(similar[number])[-3:]
        assert answers[f"{number}.png"]["shots"] == [f"{n}.png" for n in nearest]
    assert all(line["shots"] == [] for line in by_id(folder, 0).values())
    # Without shots: the classes after the image, one whole text for each.
    text = f"{IMG}a photo of a"
    ids = processor.tokenizer.encode(text)
    pixels = processor.image_processor.preprocess(paths[:1])[None]
    mask = (np.cumsum(np.array([ids]) == processor.image_token_id, axis=1) > 0)[..., None]
    candidates = tuple(tuple(processor.tokenizer.encode(f"{text} {name}.")[len(ids) :]) for name in ("cat", "red fox"))
    inputs = {"input_ids": np.array([ids], np.int32), "attention_mask": np.ones((1, len(ids)), np.int32)}
    prompt = runner.Prompt(tuple(ids), (paths[0],), candidates, (), False)
    (expected,) = log_likelihoods(model, inputs | {"pixel_values": pixels, "image_attention_mask": mask}, [prompt])
    line = by_id(folder, 0)["0.png"]
    np.testing.assert_allclose(np.array(line["log_likelihoods"])[[0, 2]], expected, atol=1e-4)
    assert line["answer"] == ("cat", "dog", "red_fox")[int(np.argmax(line["log_likelihoods"]))]
    summary = read_json(folder, "summary.json")
    assert summary["results"][0]["scores"].keys() == {"accuracy"}
    named = {line["id"]: line["answer"] for line in by_id(folder, 0).values()}
    right = [named[f"{n}.png"] == ("red_fox", "dog", "cat")[n % 3] for n in range(IMAGES)]
    assert summary["results"][0]["scores"]["accuracy"]["value"] == pytest.approx(100 * np.mean(right))


def test_candidates_and_their_auc(evaluate):
    folder, _, _ = evaluate("jsonl", "--shots", "2", "--normalize", "mean")
    lines = by_id(folder, 2)
    margins = np.array([np.diff(lines[n]["log_likelihoods"])[0] for n in range(1, 1 + IMAGES)])
    assert [lines[n]["answer"] for n in range(1, 1 + IMAGES)] == ["yes" if margin > 0 else "no" for margin in margins]
    truth = np.arange(IMAGES) % 2 == 1
    auc = np.mean([[(yes > no) + 0.5 * (yes == no) for no in margins[~truth]] for yes in margins[truth]])
    scores = read_json(folder, "summary.json")["results"][0]["scores"]
    assert scores["ROC AUC"]["value"] == pytest.approx(100 * auc)
    assert scores["ROC AUC"]["low"] <= 100 * auc <= scores["ROC AUC"]["high"]
    folder, _, _ = evaluate("jsonl", "--shots", "2", "--positive", "no", out="other")
    assert read_json(folder, "summary.json")["settings"]["mean"] is False
    assert read_json(folder, "summary.json")["main"] == "accuracy"


def test_free_answers_of_lines_and_templates_of_ones_own(evaluate, files):
    arguments = ("--data", files / "open.jsonl", "--shots", "1", "--example", "<image>{question} {answer}; ")
    folder, _, _ = evaluate("jsonl", *arguments, "--stop", "e", "--stop", "a", *QUICK)
    found = by_id(folder, 1)
    assert not any("e" in line["answer"] or "a" in line["answer"] for line in found.values())
    values = [100 * exact_match(found[n + 1]["answer"], [WORDS[n % 5]]) for n in range(IMAGES)]
    scores = read_json(folder, "summary.json")["results"][0]["scores"]
    assert list(scores) == ["exact match", "VQA accuracy"]
    assert scores["exact match"]["value"] == pytest.approx(np.mean(values))


def test_instruct_checkpoints_get_their_form(evaluate, checkpoints):
    arguments = ("--zero-shot", "none", "no support", "--limit", 4, *QUICK)
    folder, _, _ = evaluate("captions", *arguments, model=checkpoints(True))
    settings = read_json(folder, "run.json")
    assert settings["--prompt-form"] is None
    assert settings["--example"].startswith("User:<image>Describe the image briefly.<end_of_utterance>")
    assert len(read_json(folder, "predictions-0.json")) == 4


def test_answers_do_not_depend_on_the_batch_or_the_mesh(evaluate):
    arguments = ("--shots", "1", "--limit", 5, *QUICK)
    alone, _, _ = evaluate("vqa", *arguments)
    spread, _, _ = evaluate("vqa", *arguments, "--batch-size", 5, "--mesh", "fsdp=4,tensor=2", out="spread")
    assert read_json(alone, "predictions-1.json") == read_json(spread, "predictions-1.json")


def test_without_annotations_there_are_predictions_alone(evaluate, files):
    arguments = ("--data", files / "questions.json", "no support", "--zero-shot", "none", "--limit", 4)
    folder, out, _ = evaluate("vqa", *arguments, *QUICK)
    assert len(read_json(folder, "predictions-0.json")) == 4
    summary = read_json(folder, "summary.json")
    assert (summary["main"], summary["results"][0]["scores"], summary["results"][0]["count"]) == (None, {}, 4)
    assert "VQA" not in out


# Going on.


@pytest.fixture
def count_batches(monkeypatch):
    """Batches that the model answered."""
    return counted(monkeypatch)


def test_a_stopped_run_goes_on_to_the_same_answers(vqa, evaluate, tmp_path, count_batches):
    whole, printed, *_ = vqa
    # As if killed while the second batch's answers were being written.
    shutil.copytree(whole, tmp_path / "stopped")
    for name in ("summary.json", "predictions-0.json", "predictions-2.json", "report.html"):
        (tmp_path / "stopped" / name).unlink()
    path = tmp_path / "stopped" / "answers-2.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:6]) + lines[6][:-20])
    stopped, again, _ = evaluate("vqa", "--shots", "0,2", out="stopped")
    assert count_batches == [4, 4]  # the one that was cut, as a whole, and the one that was not begun
    assert path.read_bytes().splitlines(keepends=True) == lines
    for name in ("predictions-0.json", "predictions-2.json"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()
    assert again == printed
    # And once more, with other numbers of shots: nothing is asked twice.
    count_batches.clear()
    evaluate("vqa", "--shots", "0,1,2", out="stopped")
    assert count_batches == [4] * 3


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_answers(evaluate, base, files, tmp_path):
    arguments = ("--shots", "0,2", "--batch-size", 1)
    program = [Path(sys.executable).parent / "idefics-jax"]
    where = {"out": tmp_path / "killed", "model": base, "files": files}
    answers, killed = tmp_path / "killed" / "answers-0.jsonl", 0
    for number in range(2):
        with (tmp_path / "errors").open("w") as errors:
            process = subprocess.Popen([*program, *command("vqa", *arguments, **where)], stderr=errors)
        deadline = time.monotonic() + 120
        while not answers.is_file() or len(answers.read_bytes().splitlines()) < 3 * (number + 1):
            assert process.poll() is None, (tmp_path / "errors").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed == 2
    begun = answers.read_bytes()
    resumed, _, _ = evaluate("vqa", *arguments, out="killed")
    whole, _, _ = evaluate("vqa", *arguments, out="whole")
    assert answers.read_bytes().startswith(begun[: begun.rindex(b"\n") + 1])
    for name in ("answers-0.jsonl", "answers-2.jsonl", "predictions-0.json", "predictions-2.json"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()


def test_another_run_in_the_folder_is_refused(evaluate, files):
    arguments = ("--limit", 4, *QUICK)
    evaluate("captions", *arguments)
    for more, message in (
        (("--seed", 1), "holds a run with --seed 0, and this one has 1"),
        (("--prefix", "Look."), "holds a run with --prefix {bos}, and this one has Look"),
        (("--support", files / "captions.json", "no support", "--select", "rices"), "--select random, and"),
    ):
        *_, err = evaluate("captions", *arguments, *more, status=1)
        check_sentence(err, message)
    *_, err = evaluate("jsonl", status=1)
    check_sentence(err, "holds a run with .*; name another --out")
    content = read_json(files, "captions.json")
    try:
        (files / "captions.json").write_text(json.dumps(content | {"annotations": content["annotations"][:-1]}))
        *_, err = evaluate("captions", *arguments, status=1)
        check_sentence(err, "holds a run with the contents of --support")
    finally:
        (files / "captions.json").write_text(json.dumps(content))


# What is wrong.


def test_images_that_cannot_be_read(evaluate, files, tmp_path):
    """They are named and counted, and the others are answered; one is allowed; once it is there, it is asked alone."""
    data = tmp_path / "data"
    shutil.copytree(files, data)
    arguments = ("--data", data / "open.jsonl", "--zero-shot", "none", "no support", *QUICK)
    (data / "3.png").write_bytes(b"nothing")
    folder, out, err = evaluate("jsonl", *arguments, "--max-bad", "0", status=1)
    assert "│ 11 " in out
    assert "1 of the 12 examples of --data are bad, the first because: " in err
    assert "3.png is not an image that Pillow can read" in err
    assert [(line["kind"], line["id"]) for line in lines_of(folder / "problems.jsonl")] == [("unreadable image", 4)]
    assert {"id": 4, "answer": ""} in read_json(folder, "predictions-0.json")
    summary = read_json(folder, "summary.json")
    assert (summary["results"][0]["bad"], summary["problems"]["count"]) == (1, 1)
    folder, _, err = evaluate("jsonl", *arguments)
    assert "1 bad examples" in err
    shutil.copy(data / "4.png", data / "3.png")
    folder, out, err = evaluate("jsonl", *arguments)
    assert "│ 12 " in out
    assert err == ""
    assert by_id(folder, 0)[4]["answer"] is not None


def with_a_bad_photo(files, folder, number):
    """A copy of the data whose photo of that number is no image."""
    data = shutil.copytree(files, folder / "data")
    (data / f"{number}.png").write_bytes(b"nothing")
    return data


@pytest.mark.parametrize("select", ["rices", "random"])
def test_one_bad_picture_among_the_shots(evaluate, files, tmp_path, select):
    """Every question is tried; those that show the picture are named, and the others are answered."""
    data = with_a_bad_photo(files, tmp_path, 3)
    arguments = ("--data", data / "labels.jsonl", "--shots", "2", "--select", select, "--max-bad", "1")
    folder, out, _ = evaluate("classification", *arguments)
    lines = by_id(folder, 2)
    assert lines.keys() == {f"{n}.png" for n in range(IMAGES)}
    bad = {id for id, line in lines.items() if id == "3.png" or "3.png" in line["shots"]}
    assert {line["id"] for line in lines_of(folder / "problems.jsonl")} == bad
    assert f"│ {IMAGES - len(bad)} " in out
    assert bad == {"3.png"} or select == "random"


def test_a_full_disk_is_named_and_the_same_command_goes_on(evaluate, files, tmp_path):
    arguments = ("--shots", "2", "--select", "rices", "--limit", 2)
    with small_disk(tmp_path / "disk", 2**20) as disk:
        for left in (0, 4096, 12_288, 16_384):
            disk.fill(left)
            *_, err = evaluate("classification", *arguments, out="disk/run", status=1)
            check_sentence(err, f"{disk.path}/run/[.a-z0-9-]+ cannot be written: the disk is full")
            disk.empty()
        folder, out, _ = evaluate("classification", *arguments, out="disk/run")
        assert "│ 2 " in out
        assert len(by_id(folder, 2)) == 2


def test_much_that_is_missing_ends_the_run_before_it_begins(evaluate, files, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(files, data)
    for number in (1, 2):
        (data / f"{number}.png").unlink()
    arguments = ("--data", data / "open.jsonl", "--zero-shot", "none", "no support", *QUICK)
    folder, out, err = evaluate("jsonl", *arguments, status=1)
    check_sentence(
        err, "2 of the 12 examples of --data are bad, the first because: The image .*1.png of 2 is not there"
    )
    assert not list(folder.glob("answers-*"))
    assert [line["kind"] for line in lines_of(folder / "problems.jsonl")] == ["missing image"] * 2
    folder, out, err = evaluate("jsonl", *arguments, "--max-bad", "0.2")
    assert "│ 10 " in out
    assert {"id": 2, "answer": ""} in read_json(folder, "predictions-0.json")


def test_a_bad_support_set_is_told_apart(evaluate, files, tmp_path):
    (tmp_path / "support.jsonl").write_text('{"image": "0.png", "question": "q", "answer": "a"}\n' * 2 + "[]\n")
    arguments = ("--data", files / "open.jsonl", "--support", tmp_path / "support.jsonl", "--shots", 1)
    *_, err = evaluate("jsonl", *arguments, "--support-images", files, "--max-bad", "0", status=1)
    check_sentence(err, "1 of the 3 examples of --support are bad, the first because: ")
    arguments += ("--support-images", files, *QUICK)
    folder, out, err = evaluate("jsonl", *arguments)
    assert "│ 12 " in out
    assert "1 bad examples" in err
    assert by_id(folder, 1)[1]["shots"] in ([1], [2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shots", "4", "no support"), "4 shots need a support set to come from; pass --support"),
        (("no support",), "0 shots, as .* show two examples of a support set .* pass --support, or --zero-shot none"),
        (("--shots", "12"), "The support set has 11 examples to show, and 12 shots are asked for"),
        (("--positive", "yes"), "--positive is 'yes', which is no candidate"),
        (("--prompt", "poem"), "There is no prompt 'poem'; there are vqa, vizwiz, captions"),
        (("--prompt-form", "instruct"), "has no token that ends an utterance"),
        (("--example", "<image>{question}"), "must name {answer} once"),
        (("--data", "missing.json", "x"), "missing.json does not exist"),
        (("--data", "a", "b", "c", "no support"), "vqa reads the questions and their annotations, and 3 were given"),
        (("--model", "nowhere/at/all"), "nowhere/at/all is not a directory"),
    ],
)
def test_what_does_not_fit(arguments, message, evaluate):
    *_, err = evaluate("vqa", *arguments, status=1)
    check_sentence(err, message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shots", "4,x"), "'4,x' must be whole numbers with commas between"),
        (("--max-bad", "2"), "must be a number from 0 to 1"),
        (("--batch-size", "0"), "must be a whole number, 1 or more"),
        (("--beams", "3"), "unrecognized arguments: --beams 3"),
    ],
)
def test_options_that_say_nothing(arguments, message, evaluate, capsys):
    with pytest.raises(SystemExit, match="2"):
        evaluate("vqa", *arguments)
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


@pytest.mark.slow
@pytest.mark.parametrize("task", ["vqa", "jsonl", "classification"])
def test_two_processes_answer_as_one(task, evaluate, base, files, tmp_path):
    """Each reads its part of the images; the first writes what one alone would."""
    arguments = ("--shots", "1", "--batch-size", 4, "--limit", 6, "--mesh", "fsdp=4,tensor=2")
    arguments += ("--select", "rices") if task == "classification" else ()
    alone, printed, _ = evaluate(task, *arguments)
    given = command(task, *arguments, out=tmp_path / "both", model=base, files=files)
    first, second = two_processes(*given)
    assert (first.status, second.status) == (0, 0), first.err + second.err
    assert (first.out, second.out) == (printed, "")
    assert read_json(tmp_path / "both", "predictions-1.json") == read_json(alone, "predictions-1.json")


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 3])  # read by the first process, and by the second
def test_one_bad_picture_in_two_processes(evaluate, base, files, tmp_path, number):
    """Whichever of them reads it, both go on, and the answers are those of one alone."""
    data = with_a_bad_photo(files, tmp_path, number)
    arguments = ("--data", data / "labels.jsonl", "--shots", "1", "--limit", 6, "--select", "rices", "--max-bad", "1")
    arguments += ("--mesh", "fsdp=4,tensor=2")
    alone, printed, _ = evaluate("classification", *arguments)
    given = command("classification", *arguments, out=tmp_path / "both", model=base, files=files)
    first, second = two_processes(*given)
    assert (first.status, second.status) == (0, 0), first.err + second.err
    assert first.out.endswith(printed)
    assert read_json(tmp_path / "both", "predictions-1.json") == read_json(alone, "predictions-1.json")
    assert f"{number}.png" in {line["id"] for line in lines_of(tmp_path / "both" / "problems.jsonl")}


def test_two_evaluations_in_one_folder(files, base, tmp_path, capfd):
    arguments = ["eval", "jsonl", "--model", str(base), "--data", str(files / "open.jsonl"), "--zero-shot", "none"]
    with locked(tmp_path / "run", "eval"):
        status = main([*arguments, "--out", str(tmp_path / "run")])
    assert status == 1
    check_sentence(capfd.readouterr().err, f"run is in use by eval, process {os.getpid()}")
    assert not any((tmp_path / "run").iterdir())
