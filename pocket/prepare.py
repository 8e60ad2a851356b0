"""Makes what the pocket model is trained and measured on, from packages of icons; the same on every machine.

    python -m pocket.prepare FOLDER [--documents N] [--processes N]

FOLDER gets `train/` (WebDataset shards of conversations and few-shot documents), `names.tar` and others
(questions about their pictures, each skill alone), the questions `seen.jsonl` and `unseen.jsonl` with
their pictures, and `model/`, the untrained model with its tokenizer.
"""

import argparse
import json
import tarfile
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from idefics_jax.data.shards import TarShard
from pocket import questions
from pocket.drawings import SEEN, UNSEEN, Concept, Drawing, check, draw, read_concepts
from pocket.scenes import COLOURS, PLACES, SIDE, Scene, make_scene
from pocket.untrained import write_model

SEED = 8
DOCUMENTS = 96_000
SHARD = 2_000  # documents
SHOWN = 96  # pixels of a picture that is measured on
GLYPHS = 0.2  # share of training pictures drawn after a glyph, where there is one
MOST_SHOTS = 4
SHOT_KINDS = ("name", "background", "kind", "count")
#: Skills that are learnt one at a time, by their questions and answers.
APART: dict[str, Callable[[str, str], bool]] = {
    "names": lambda question, _: question in questions.NAMING,
    "places": lambda question, _: question.startswith(("What is at the", "Where is the")),
    "yes-no": lambda _, answer: answer in ("yes", "no"),
    "backgrounds": lambda question, _: question in questions.BACKGROUND,
}
MEASURED = {"name": 0, "background": 600, "yes/no": 1000, "count": 600, "where": 600, "kind": 600}  # 0: every drawing


class Pictures:
    """Draws scenes at random out of `drawings`, all things equally often."""

    def __init__(self, drawings: Sequence[Drawing], change: bool, side: int = SIDE):
        self.concepts = list(dict.fromkeys(drawing.concept for drawing in drawings))
        self._change, self._side = change, side
        self._drawings: dict[tuple[Concept, bool], list[Drawing]] = {}
        for drawing in drawings:
            self._drawings.setdefault((drawing.concept, drawing.glyph), []).append(drawing)

    def scene(self, count: int, random: np.random.Generator) -> Scene:
        """A picture of this many things; some of those with several are of the same thing again and again."""
        chosen = random.choice(len(self.concepts), count, replace=count > 1 and random.random() < 0.3)
        if count > 1 and random.random() < 0.2:
            chosen[1:] = chosen[0]
        return make_scene(
            [self._one(self.concepts[number], random) for number in chosen], random, self._change, self._side
        )

    def _one(self, concept: Concept, random: np.random.Generator) -> Drawing:
        glyphs = self._drawings.get((concept, True), [])
        among = glyphs if glyphs and random.random() < GLYPHS else self._drawings[concept, False]
        return among[int(random.integers(len(among)))]


def make_document(pictures: Pictures, random: np.random.Generator) -> tuple[dict[str, Any], list[Image.Image]]:
    """A record to train on, as `train.data` reads it, and its images."""
    kind = random.random()
    if kind < 0.005:
        return {"messages": questions.talk(random)}, []
    if kind < 0.8:
        scene = pictures.scene(int(random.choice([1, 2, 3, 4], p=[0.68, 0.12, 0.1, 0.1])), random)
        messages = questions.conversation(scene, pictures.concepts, random)
        return {"messages": messages, "things": [scene.things()]}, [scene.image]
    form = str(random.choice(["answer", "question", "caption"], p=[0.45, 0.4, 0.15]))
    count = int(random.integers(1, MOST_SHOTS + 2))
    without = min(count - 1, 2) if form != "answer" and random.random() < 0.2 else 0
    asked_kind = {"answer": str(random.choice(SHOT_KINDS)), "caption": "caption"}.get(form)
    pairs = []
    for _ in range(count):
        several = random.random() < 0.3 and asked_kind not in ("name", "kind")
        scene = pictures.scene(int(random.integers(2, 5)) if several else 1, random)
        kinds = [asked_kind] if asked_kind else _kinds(scene)
        pairs.append((scene, questions.ask(str(random.choice(kinds)), scene, pictures.concepts, random)))
    scenes = [scene for scene, _ in pairs[without:]]
    text = questions.document(pairs, form, without)
    return {"text": text, "things": [scene.things() for scene in scenes]}, [scene.image for scene in scenes]


def _kinds(scene: Scene) -> list[str]:
    """The kinds of questions with one right answer."""
    if not scene.places:
        return ["name", "name", "background", "yes/no", "yes/no", "kind", "count"]
    several = len({drawing.concept for drawing in scene.drawings}) == len(scene.drawings)
    return ["name", "yes/no", "count", "background"] + ["where"] * several


def write_shard(path: Path, first: int, count: int, seen: Sequence[Drawing]) -> Path:
    """Documents `first` and so on; each depends on its number alone."""
    pictures = Pictures(seen, change=True)
    unfinished = path.with_suffix(".unfinished")
    with tarfile.open(unfinished, "w") as tar:
        for number in range(first, first + count):
            record, images = make_document(pictures, np.random.default_rng([SEED, number]))
            _add(tar, f"{number:07d}.json", json.dumps(record).encode())
            for place, image in enumerate(images):
                _add(tar, f"{number:07d}.{place}.jpg", _jpeg(image))
    return unfinished.rename(path)


def write_apart(folder: Path, shards: Sequence[Path]) -> None:
    """A shard for each of APART: its questions and answers out of all conversations, each alone.

    `where.tar` asks where everything is in all pictures of several different things.
    """
    with ExitStack() as stack:
        tars = {name: stack.enter_context(tarfile.open(folder / f"{name}.tar", "w")) for name in (*APART, "where")}
        counts = dict.fromkeys(tars, 0)
        for shard in shards:
            source = TarShard(shard)
            for record in map(source.__getitem__, range(len(source))):
                if "messages" in record and record.get("images"):
                    _, _, content = record["images"][0].partition(",")
                    for name, question, answer in _apart(record):
                        pair = {"question": question, "answer": answer}
                        _add(tars[name], f"{counts[name]:07d}.json", json.dumps(pair).encode())
                        _add(tars[name], f"{counts[name]:07d}.0.jpg", b64decode(content))
                        counts[name] += 1


def _apart(record: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What is asked about a conversation's picture: the shard that it belongs to, the question and its answer."""
    turns = [message["content"] for message in record["messages"]]
    for asked, answer in zip(turns[::2], turns[1::2], strict=True):
        question = asked[-1]["text"]
        yield from ((name, question, answer) for name, wanted in APART.items() if wanted(question, answer))
    for question, answer in _where(record["things"][0]):
        yield "where", question, answer


def _where(things: Sequence[str | None]) -> list[tuple[str, str]]:
    """Where each of several different things is."""
    named = {thing: place for thing, place in zip(things, PLACES, strict=False) if thing}
    if len(things) == 1 or len(named) < sum(thing is not None for thing in things):
        return []
    return [(f"Where is the {thing}?", place) for thing, place in named.items()]


def write_questions(folder: Path, name: str, drawings: Sequence[Drawing]) -> None:
    """`NAME.jsonl`: questions about pictures whose drawings are not changed, with what kind each is, and pictures."""
    random = np.random.default_rng([SEED, len(name)])
    coloured = [drawing for drawing in drawings if not drawing.glyph]
    pictures = Pictures(coloured, change=False, side=SHOWN)
    lines = []
    for kind, count in MEASURED.items():
        for number in range(count or len(coloured)):
            if kind == "name":
                scene = make_scene([coloured[number]], random, change=False, side=SHOWN)
            else:
                scene = _scene_for(kind, number, pictures, random)
            asked = questions.ask(kind, scene, pictures.concepts, random)
            path = Path(name) / f"{len(lines):05d}.png"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            scene.image.save(folder / path)
            lines.append(asked._asdict() | {"image": str(path), "styles": sorted({d.style for d in scene.drawings})})
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _scene_for(kind: str, number: int, pictures: Pictures, random: np.random.Generator) -> Scene:
    """One to four things, equally often; one alone where its kind is asked, different ones where their place is."""
    while True:
        scene = pictures.scene({"kind": 1, "where": 2 + number % 3}.get(kind, 1 + number % 4), random)
        if kind != "where" or len({drawing.concept for drawing in scene.drawings}) == len(scene.drawings):
            return scene


def texts() -> Iterator[str]:
    """All words that are asked and answered, for the tokenizer."""
    for concept in read_concepts():
        name = questions.with_article(concept.name)
        yield f"{concept.name} {concept.kind}\nWhere is the {concept.name}?\nIs there {name}?\nIs this {name}?\n{name}"
    common = [*COLOURS, *PLACES, *questions.COUNTS, "yes", "no", questions.INSTRUCTION]
    common += [f"on {questions.with_article(colour)} background" for colour in COLOURS]
    common += [*questions.NAMING, *questions.BACKGROUND, *questions.COUNTING, *questions.KIND, *questions.DESCRIBING]
    common += [text for pair in questions.TALK for text in pair]
    common += ["What is at the", "Do you see a", "Is there a thing in the picture?", "a, b and c", " Question: Answer:"]
    common += ["User: Assistant: Image: Caption:", "\nUser:\nAssistant:\nImage:\nAnswer:\nCaption:"]
    yield from common * 3


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, BytesIO(content))


def _jpeg(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "JPEG", quality=92, subsampling=0)
    return file.getvalue()


@cache
def _drawings(packages: Path) -> list[Drawing]:
    return draw(packages, SEEN)


def _shard(path: Path, first: int, count: int, packages: Path) -> Path:
    return write_shard(path, first, count, _drawings(packages))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pocket.prepare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    folder, packages = options.folder, options.folder / "packages"
    (folder / "train").mkdir(parents=True, exist_ok=True)
    seen, unseen = _drawings(packages), draw(packages, UNSEEN)
    check(seen, unseen)
    write_model(folder / "model", texts())
    write_questions(folder, "seen", seen)
    write_questions(folder, "unseen", unseen)
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        shards = []
        for first in range(0, options.documents, SHARD):
            path = folder / "train" / f"{first // SHARD:04d}.tar"
            if not path.exists():
                count = min(SHARD, options.documents - first)
                shards.append(pool.submit(_shard, path, first, count, packages))
        for shard in track(shards, "Drawing pictures"):
            shard.result()
    shards = sorted((folder / "train").glob("*.tar"))
    write_apart(folder, shards)


if __name__ == "__main__":
    main()
