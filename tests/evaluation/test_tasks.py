"""The benchmarks' files, as they are published, and what is wrong with some."""

import json

import pytest

from idefics_jax.evaluation.examples import without_missing_images
from idefics_jax.evaluation.tasks import read_data


@pytest.fixture
def write(tmp_path):
    """Writes a file of JSON, or of lines of it; gives its path."""

    def write(name, content, lines=False):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text("\n".join(map(json.dumps, content)) if lines else json.dumps(content))
        return str(path)

    return write


def read(task, *files, images="i", name=None, split=None, limit=None):
    return read_data(task, list(files), images, name, split, limit)


def kinds(data):
    return [(problem.kind, problem.id) for problem in data.problems]


def questions(*ids, **more):
    return {"questions": [{"question_id": id, "image_id": id // 10, "question": f"q{id}", **more} for id in ids]}


def annotations(*ids, answers=("yes", "no", "yes")):
    entry = [{"answer": answer, "answer_id": number} for number, answer in enumerate(answers, 1)]
    return {"annotations": [{"question_id": id, "image_id": id // 10, "answers": entry} for id in ids]}


def test_vqav2(write):
    data = read("vqa", write("q", questions(420, 421)), write("a", annotations(421, 420)), name="v_{image_id:06d}.jpg")
    assert [example.id for example in data.examples] == [420, 421]
    assert data.examples[0].images == ("i/v_000042.jpg",)
    assert (data.examples[0].question, data.examples[0].references) == ("q420", ("yes", "no", "yes"))
    assert data.examples[0].answer == "yes"
    assert (data.id_name, data.answer_name, data.problems) == ("question_id", "answer", [])


def test_vqa_without_annotations(write):
    data = read("vqa", write("q", questions(1)))
    assert data.examples[0].references == ()
    assert data.examples[0].images == ("i/0.jpg",)


def test_vqa_ids_that_do_not_match(write):
    bad = annotations(3, answers=())["annotations"] + [{"question_id": 5}, {"answers": []}]
    a = annotations(2, 4)
    a["annotations"] += bad
    q = questions(1, 2, 2, 3)
    q["questions"].append({"question_id": 6, "image_id": 1})
    data = read("vqa", write("q", q), write("a", a))
    assert [example.id for example in data.examples] == [2]
    assert sorted(kinds(data), key=str) == sorted(
        [
            ("malformed record", None),  # an annotation without answers,
            ("malformed record", None),  # one without an id,
            ("malformed record", None),  # a question without its text
            ("question without annotation", 1),
            ("duplicate id", 2),
            ("no answers", 3),
            ("annotation without question", 4),
        ],
        key=str,
    )
    assert "has no question" in next(problem.text for problem in data.problems if "question" in problem.text)


def test_textvqa(write):
    records = [{"question_id": 7, "image_id": "abc", "question": "q", "answers": ["a", "b"]}]
    data = read("vqa", write("t", {"dataset_name": "textvqa", "data": records}))
    assert data.examples[0].images == ("i/abc.jpg",)
    assert data.examples[0].references == ("a", "b")


def test_vizwiz(write):
    record = {"image": "VizWiz_val_1.jpg", "question": "q", "answers": [{"answer": "a", "answer_confidence": "yes"}]}
    data = read("vqa", write("t", [record]))
    assert data.examples[0].id == "VizWiz_val_1.jpg"
    assert data.examples[0].images == ("i/VizWiz_val_1.jpg",)
    assert (data.id_name, data.examples[0].references) == ("image", ("a",))


def test_coco_captions(write):
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}, {"id": 3}],
        "annotations": [
            {"image_id": 1, "caption": "one"},
            {"image_id": 1, "caption": "two"},
            {"image_id": 9, "caption": "three"},
            {"image_id": 3, "caption": "four"},
        ],
    }
    data = read("captions", write("c", content))
    assert [(example.id, example.images, example.references) for example in data.examples] == [
        (1, ("i/a.jpg",), ("one", "two")),
        (3, ("i/3.jpg",), ("four",)),
    ]
    assert kinds(data) == [("no captions", 2), ("caption without image", 9)]
    assert (data.id_name, data.answer_name) == ("image_id", "caption")
    del content["annotations"]
    assert [example.references for example in read("captions", write("c", content)).examples] == [()] * 3


def test_textcaps(write):
    data = [{"image_id": "x", "image_name": "x", "caption_str": f"c{number}"} for number in range(2)]
    (example,) = read("captions", write("c", {"data": data})).examples
    assert (example.id, example.images, example.references) == ("x", ("i/x.jpg",), ("c0", "c1"))


def test_karpathys_flickr(write):
    images = [
        {"imgid": number, "filename": f"{number}.jpg", "split": split, "sentences": [{"raw": "a b", "tokens": []}]}
        for number, split in enumerate(("train", "test", "test"))
    ]
    file = write("c", {"images": images, "dataset": "flickr30k"})
    data = read("captions", file, split="test")
    assert [example.id for example in data.examples] == [1, 2]
    assert (data.examples[0].images, data.examples[0].references) == (("i/1.jpg",), ("a b",))
    with pytest.raises(ValueError, match="is of the split 'val'"):
        read("captions", file, split="val")


def test_karpathys_coco(write):
    image = {"imgid": 0, "cocoid": 391895, "filepath": "val2014", "filename": "a.jpg", "split": "test"}
    file = write("c", {"images": [image | {"sentences": [{"raw": "a b"}]}]})
    (example,) = read("captions", file, split="test", name="{filepath}/{filename}").examples
    assert (example.id, example.images) == (391895, ("i/val2014/a.jpg",))


def test_folders_of_classes(write, tmp_path):
    for name in ("dog/b.png", "dog/a.JPG", "cat/1.png", "cat/2.png", "cat/notes.txt"):
        write(name, b"")
    (tmp_path / "fish").mkdir()
    data = read("classification", str(tmp_path))
    assert [(example.id, example.references) for example in data.examples] == [
        ("cat/1.png", ("cat",)),
        ("dog/a.JPG", ("dog",)),
        ("cat/2.png", ("cat",)),
        ("dog/b.png", ("dog",)),
    ]
    assert data.examples[0].candidates == ("cat", "dog", "fish")
    assert data.examples[0].images == (str(tmp_path / "cat" / "1.png"),)
    assert kinds(data) == [("empty class", "fish")]


def test_labels(write, tmp_path):
    lines = [{"image": "a.png", "label": "y"}, {"image": "b.png", "label": "x", "text": "t", "id": 4}, {"image": "c"}]
    file = write("d/labels.jsonl", lines, lines=True)
    for given, images in ((str(tmp_path / "d"), None), (file, None), (file, str(tmp_path / "d"))):
        data = read("classification", given, images=images)
        assert [(example.id, example.fields) for example in data.examples] == [("a.png", {}), (4, {"text": "t"})]
        assert data.examples[0].images == (str(tmp_path / "d" / "a.png"),)
        assert data.examples[0].candidates == ("x", "y")
        assert [problem.text for problem in data.problems] == [f"{tmp_path}/d/labels.jsonl line 3: it has no label."]


def test_jsonl(write):
    lines = [
        {"image": "a.png", "question": "q", "answer": "x", "text": "t"},
        {"id": "z", "images": ["a.png", "/b.png", "http://c/d.png"], "question": "q", "answers": ["x", "y"]},
        {"question": "no image, no answer"},
    ]
    data = read("jsonl", write("j", lines, lines=True))
    assert [example.id for example in data.examples] == [1, "z", 3]
    assert [example.images for example in data.examples] == [
        ("i/a.png",),
        ("i/a.png", "/b.png", "http://c/d.png"),
        (),
    ]
    assert [example.references for example in data.examples] == [("x",), ("x", "y"), ()]
    assert data.examples[0].fields == {"text": "t"}


def test_jsonl_with_candidates(write):
    line = {"image": "a.png", "question": "q"}
    lines = [
        line | {"answer": "yes", "candidates": ["no", "yes"]},
        line | {"answer": "maybe", "candidates": ["no", "yes"]},
        line | {"answer": "yes", "candidates": ["yes", "yes"]},
        line | {"answer": [], "candidates": ["no", "yes"]},
        line | {"answers": [], "candidates": ["no", "yes"]},
    ]
    data = read("jsonl", write("j", lines, lines=True))
    assert [example.candidates for example in data.examples] == [("no", "yes")]
    assert [problem.kind for problem in data.problems] == [
        "answer no candidate",
        "candidates",
        "no answers",
        "no answers",
    ]
    with pytest.raises(ValueError, match=r"Some lines of .* have candidates and others have not"):
        read("jsonl", write("j", [line, *lines], lines=True))


def test_broken_lines(write):
    data = read("jsonl", write("j", b'{"question": "q"}\n{"question": \n\n[1]\n{"question": "\xff"}\n{"images": 3}'))
    assert [example.id for example in data.examples] == [1]
    lines = [problem.text.partition(": ")[0].rpartition("/")[2] for problem in data.problems]
    assert lines == ["j line 2", "j line 4", "j line 5", "j line 6"]


def test_the_limit_stops_reading(write):
    data = read("vqa", write("q", questions(*range(20))), write("a", annotations(*range(1, 20))), limit=3)
    assert [example.id for example in data.examples] == [1, 2, 3]
    assert kinds(data) == [("question without annotation", 0)]


def test_missing_images(write, tmp_path):
    write("a.png", b"")
    lines = [{"image": image, "question": "q"} for image in ("a.png", "b.png", "http://x/c.png")]
    data = without_missing_images(read("jsonl", write("j", lines, lines=True), images=str(tmp_path)), True)
    assert [example.id for example in data.examples] == [1, 3]
    assert kinds(data) == [("missing image", 2)]
    data = without_missing_images(read("jsonl", str(tmp_path / "j"), images=str(tmp_path)), False)
    assert kinds(data) == [("missing image", 2), ("remote image", 3)]
    assert data.problems[1].text == "The image http://x/c.png of 3 is not fetched without --remote-images."


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        ("vqa", b"{", "is not JSON"),
        ("vqa", {"question": []}, "has no list named questions or data"),
        ("vqa", {"questions": []}, "holds no examples"),
        ("captions", {"annotations": []}, "has no list named images or data"),
        ("jsonl", b"", "holds no examples"),
    ],
)
def test_files_that_are_none(task, content, message, write):
    with pytest.raises(ValueError, match=message):
        read(task, write("f", content))


def test_files_that_do_not_fit(write, tmp_path):
    with pytest.raises(ValueError, match="captions reads one file, and 2 were given"):
        read("captions", "a", "b")
    with pytest.raises(ValueError, match="names nothing"):
        read("vqa", write("q", questions(1)), name="x.jpg")
    with pytest.raises(FileNotFoundError, match="neither a folder of classes nor a JSONL file"):
        read("classification", str(tmp_path / "none"))
    data = read("vqa", write("q", questions(1)), name="{picture}.jpg")
    assert "does not fit the pattern" in data.problems[0].text
