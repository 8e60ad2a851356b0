"""The pictures that come with the pocket model, for `idefics-jax demo`, in a style that it never saw.

python -m pocket.pictures FOLDER OUTPUT
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pocket.drawings import UNSEEN, Drawing, fetch, read_concepts, read_json, render
from pocket.scenes import make_scene

SIDE = 224
STYLE = "twemoji"


class Picture(NamedTuple):
    """What is on a picture, the seed of its looks, and what is asked about it."""

    things: tuple[str, ...]
    seed: int
    questions: tuple[str, ...]


PICTURES = {
    "guitar.png": Picture(("guitar",), 4, ("What is in this picture?", "What kind of thing is this?")),
    "elephant.png": Picture(("elephant",), 0, ("What is this?", "Is this an elephant?", "Is this a dog?")),
    "crown.png": Picture(("crown",), 1, ("What is this?", "What colour is the background?")),
    "breakfast.png": Picture(
        ("croissant", "banana", "coffee"), 2, ("How many things are there?", "Is there a banana?")
    ),
}


def draw(packages: Path, picture: Picture) -> Image.Image:
    """The picture; `packages` is where `pocket.prepare` put them."""
    stored = read_json(fetch(UNSEEN[STYLE], packages), "icons")
    concepts = {concept.name: concept for concept in read_concepts()}
    drawings = [
        Drawing(concepts[thing], STYLE, False, render(stored, concepts[thing].drawings[0], SIDE))
        for thing in picture.things
    ]
    return make_scene(drawings, np.random.default_rng(picture.seed), False, SIDE).image


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pocket.pictures", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="what pocket.prepare made")
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name, picture in PICTURES.items():
        draw(options.folder / "packages", picture).save(options.output / name, optimize=True)
    asked = {name: picture.questions for name, picture in PICTURES.items()}
    (options.output / "questions.json").write_text(json.dumps(asked, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
