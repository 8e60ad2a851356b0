"""The model that comes with the package answers, loads in transformers, and is made of what its recipe says."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from io import BytesIO, TextIOWrapper
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from idefics_jax import POCKET, IdeficsForVisionText2Text, IdeficsProcessor
from idefics_jax.cli import main
from idefics_jax.data.shards import TarShard
from idefics_jax.pocket import PICTURES, demo_questions
from pocket.drawings import SEEN, UNSEEN, Concept, Drawing, read_concepts
from pocket.pictures import PICTURES as DRAWN
from pocket.prepare import Pictures, make_document
from pocket.questions import COUNTS, NAMING, ask, caption, document, with_article
from pocket.scenes import COLOURS, SIDE, make_scene
from pocket.words import EVALUATION_PROMPTS, make_tokenizer

MOST_BYTES = 8e6
RIGHT = ["guitar", "instrument", "elephant", "yes", "no", "crown", "purple", "three", "yes"]


@pytest.fixture(scope="module")
def processor():
    return IdeficsProcessor.from_pretrained(POCKET)


@pytest.fixture(scope="module")
def model():
    return IdeficsForVisionText2Text.from_pretrained(POCKET, dtype="float32")


@pytest.fixture(scope="module")
def drawings():
    """Squares, discs and other shapes in two styles and as glyphs."""
    rows, columns = np.mgrid[-1:1:40j, -1:1:40j]
    distance = np.hypot(rows, columns)
    shapes = {
        "square": distance < 2,
        "disc": distance < 1,
        "ring": (distance > 0.5) & (distance < 1),
        "cross": (abs(rows) < 0.3) | (abs(columns) < 0.3),
        "wedge": rows > columns,
    }
    drawn = []
    for name, shape in shapes.items():
        for style, shade in {"light": (255, 127, 51), "dark": (25, 127, 51), "glyphs": (0, 0, 0)}.items():
            pixels = np.concatenate([np.broadcast_to(shade, (40, 40, 3)), shape[..., None] * 255], axis=-1)
            concept = Concept(name, "shape", (name,))
            drawn.append(Drawing(concept, style, style == "glyphs", pixels.astype(np.uint8)))
    return drawn


def test_it_is_small_and_has_the_published_files():
    files = {path.name: path.stat().st_size for path in Path(POCKET).iterdir()}
    assert sum(files.values()) + sum(path.stat().st_size for path in PICTURES.iterdir()) <= MOST_BYTES
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "README.md"} <= set(files)


def test_the_demo_asks_it_about_pictures_in_a_style_that_it_never_saw(capsys):
    assert main(["demo"]) == 0
    said = capsys.readouterr().out
    asked = demo_questions()
    for one, answer in zip(asked, RIGHT, strict=True):
        assert re.search(f"^{re.escape(one.image.name)} +{re.escape(one.question)} +{answer} *$", said, re.MULTILINE)


def test_chat_remembers_the_picture(monkeypatch, capsys):
    lines = f"/image {PICTURES / 'elephant.png'}\nWhat is this?\nHow many things are there?\n"
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(lines.encode())))
    assert main(["chat", "--max-new-tokens", "24"]) == 0
    assert capsys.readouterr().out.split() == ["elephant", "one"]


def test_an_evaluation_takes_the_prompts_that_it_was_taught(tmp_path, capsys):
    asked = json.loads((PICTURES / "questions.json").read_text())
    pairs = [(name, question) for name, questions in asked.items() for question in questions]
    records = [{"image": n, "question": q, "answer": a} for (n, q), a in zip(pairs, RIGHT, strict=True)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    command = ["eval", "jsonl", "--data", f"{tmp_path}/data.jsonl", "--images", str(PICTURES)]
    command += ["--batch-size", "9", "--num-beams", "1", "--max-new-tokens", "24"]  # as the demo: with its programs
    assert main([*command, "--out", f"{tmp_path}/run"]) == 0
    scores = json.loads((tmp_path / "run" / "summary.json").read_text())["results"][0]["scores"]
    assert scores["exact match"]["value"] > 80  # without a prompt of its own 0
    capsys.readouterr()


def test_its_prompts_are_the_recipe_s(processor):
    assert processor.tokenizer.config["evaluation_prompts"] == EVALUATION_PROMPTS


@pytest.mark.torch
def test_transformers_says_the_same(processor, model):
    torch = pytest.importorskip("torch")
    from tests.reference.main_job import reference, reference_inputs

    reference_processor, reference_model = reference(POCKET)
    end = "<end_of_utterance>"
    prompts = [
        [f"User:{text}{end}\nAssistant:"] if image is None else ["User:", image, f"{text}{end}\nAssistant:"]
        for image, text in [(Image.open(one.image), one.question) for one in demo_questions()] + [(None, "Hello.")]
    ]
    theirs = reference_inputs(reference_processor, prompts)
    ours = processor(prompts)
    np.testing.assert_array_equal(ours["input_ids"], theirs["input_ids"])
    ends = [2, processor.tokenizer.convert_tokens_to_ids([end])[0]]
    with torch.no_grad():
        tokens = reference_model.generate(**theirs, do_sample=False, max_new_tokens=16, eos_token_id=ends)
    np.testing.assert_array_equal(model.generate(**ours, max_new_tokens=16, eos_token_id=ends), tokens)


def test_the_model_card_names_every_package_and_its_licence():
    card = (Path(POCKET) / "README.md").read_text(encoding="utf-8")
    for style, icons in (SEEN | UNSEEN).items():
        assert f"| {style} | `{icons.package}` | {icons.licence} | {icons.author} |" in card


def test_the_styles_that_it_is_measured_in_are_not_those_that_it_learns():
    assert not set(SEEN) & set(UNSEEN)
    assert not {icons.package for icons in SEEN.values()} & {icons.package for icons in UNSEEN.values()}
    assert all("BY-SA" not in icons.licence and "NC" not in icons.licence for icons in (SEEN | UNSEEN).values())


def test_things_have_one_name_each_and_at_least_two_hundred_of_them():
    concepts = read_concepts()
    assert len(concepts) >= 200
    assert len({concept.name for concept in concepts}) == len(concepts)
    counts = Counter(name for concept in concepts for name in concept.drawings)
    assert counts.most_common(1)[0][1] == 1


def test_the_shipped_pictures_are_the_recipe_s():
    asked = json.loads((PICTURES / "questions.json").read_text())
    assert asked == {name: list(picture.questions) for name, picture in DRAWN.items()}
    names = {concept.name for concept in read_concepts()}
    assert all(thing in names for picture in DRAWN.values() for thing in picture.things)


def test_a_scene_is_what_it_says(drawings):
    random = np.random.default_rng(0)
    square, disc = drawings[0], drawings[3]
    for _ in range(20):
        scene = make_scene([square, disc], random, change=False, side=96)
        pixels = np.asarray(scene.image, np.int32)
        assert pixels.shape == (96, 96, 3)
        corner = np.median(pixels[40:56, 40:56], (0, 1))  # between the quarters
        assert min(COLOURS, key=lambda name: np.abs(corner - COLOURS[name]).sum()) == scene.background
        for place in scene.places:
            row, column = 24 + 48 * ("bottom" in place), 24 + 48 * ("right" in place)
            assert np.abs(pixels[row, column] - (255, 127, 51)).sum() < 6, place


def test_changed_drawings_are_seen_on_their_background(drawings):
    random = np.random.default_rng(1)
    for number in range(60):
        scene = make_scene([drawings[number % len(drawings)]], random)
        assert scene.image.size == (SIDE, SIDE)
        assert np.asarray(scene.image).std() > 1


def test_questions_have_the_answers_of_their_scene(drawings):
    random = np.random.default_rng(2)
    concepts = [drawings[0].concept, drawings[3].concept, Concept("owl", "animal", ("owl",))]
    scene = make_scene([drawings[0], drawings[3]], random)
    one = make_scene([drawings[0]], random)
    assert ask("name", one, concepts, random).answer == "square"
    assert ask("kind", one, concepts, random).answer == "shape"
    assert ask("count", scene, concepts, random).answer == "two" == COUNTS[2]
    assert ask("background", scene, concepts, random).answer == scene.background
    found = {ask("where", scene, concepts, random) for _ in range(40)}
    assert {(asked.question, asked.answer) for asked in found} == {
        ("Where is the square?", scene.places[0]),
        ("Where is the disc?", scene.places[1]),
    }
    for _ in range(40):
        asked = ask("yes/no", scene, concepts, random)
        assert (asked.answer == "yes") == ("owl" not in asked.question)
    assert caption(scene) == f"a square and a disc on {with_article(scene.background)} background"
    assert [with_article(name) for name in ("owl", "unicorn", "grapes")] == ["an owl", "a unicorn", "grapes"]


def test_documents_depend_on_their_number_alone_and_are_what_training_reads(drawings):
    pictures = Pictures(drawings, change=True)
    for number in range(80):
        record, images = make_document(pictures, np.random.default_rng([1, number]))
        again, same = make_document(Pictures(drawings, change=True), np.random.default_rng([1, number]))
        assert record == again
        assert all(np.array_equal(a, b) for a, b in zip(images, same, strict=True))
        if "text" in record:
            assert record["text"].count("<image>") == len(images) >= 1
        else:
            parts = [part for message in record["messages"] for part in message["content"]]
            assert sum(isinstance(part, dict) and part["type"] == "image" for part in parts) == len(images)
            assert [message["role"] for message in record["messages"]][-1] == "assistant"


def test_the_first_examples_may_lack_their_images(drawings):
    random = np.random.default_rng(3)
    pairs = [(scene := make_scene([drawings[0]], random), ask("name", scene, [], random)) for _ in range(3)]
    text = document(pairs, "question", without_images=2)
    assert text.count("Image:") == 3
    assert text.count("<image>") == 1
    assert text.rindex("Image:<image>Question: ") > text.index("Image:Question: ")


def test_a_taught_word_is_a_token_and_others_are_spelt():
    tokenizer = make_tokenizer(["a red fox. fox fox\nAssistant: yes", "Is this a fox?\nAssistant: no"] * 3)
    ids = tokenizer.encode("a fox?\nAssistant: fox")
    assert tokenizer.decode(ids) == "a fox?\nAssistant: fox"
    assert len(ids) == len(["▁a", "▁fox", "?", "\n", "Assistant", ":", "▁fox"])
    for text in ("zebra 猫 é", "x\ty"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm, to fetch packages of icons")
def test_the_data_is_prepared_from_packages(tmp_path):
    command = [sys.executable, "-m", "pocket.prepare", str(tmp_path), "--documents", "30", "--processes", "1"]
    subprocess.run(command, check=True)
    (shard,) = (tmp_path / "train").iterdir()
    assert len(TarShard(shard)) == 30
    names = TarShard(tmp_path / "names.tar")
    assert all(names[number]["question"] in NAMING for number in range(len(names)))
    for name, styles in {"seen": SEEN, "unseen": UNSEEN}.items():
        asked = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        assert {style for one in asked for style in one["styles"]} <= set(styles)
        assert {one["answer"] for one in asked if one["kind"] == "name"} == {one.name for one in read_concepts()}
        assert all((tmp_path / one["image"]).exists() for one in asked)
    files = [Path(folder) / "tokenizer.json" for folder in (tmp_path / "model", POCKET)]
    assert files[0].read_bytes() == files[1].read_bytes()
