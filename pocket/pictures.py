"""The pictures that come with the pocket model, for `idefics-jax demo`, in a style that it never saw.

python -m pocket.pictures FOLDER OUTPUT
"""

import argparse
import json
from pathlib import Path

import numpy as np

from pocket.drawings import UNSEEN, Drawing, fetch, read_concepts, render
from pocket.scenes import make_scene

SIDE = 224
STYLE = "twemoji"
#: What is on each picture, and what is asked about it.
PICTURES = {
    "fox.png": (["fox"], ["What is in this picture?", "What colour is the background?", "Is this a dog?"]),
    "guitar.png": (["guitar"], ["What is this?", "What kind of thing is this?"]),
    "breakfast.png": (
        ["croissant", "banana", "coffee"],
        ["How many things are there?", "Where is the banana?", "Is there a croissant?"],
    ),
    "trip.png": (["rocket", "sailing boat"], ["Describe the picture.", "Is there an elephant?"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pocket.pictures", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where pocket.prepare put its packages")
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    stored = fetch(UNSEEN[STYLE], options.folder / "packages")
    concepts = {concept.name: concept for concept in read_concepts()}
    options.output.mkdir(parents=True, exist_ok=True)
    for number, (name, (things, _)) in enumerate(PICTURES.items()):
        drawings = [
            Drawing(concepts[thing], STYLE, False, render(stored, concepts[thing].drawings[0], SIDE))
            for thing in things
        ]
        make_scene(drawings, np.random.default_rng(number), False, SIDE).image.save(
            options.output / name, optimize=True
        )
    asked = {name: questions for name, (_, questions) in PICTURES.items()}
    (options.output / "questions.json").write_text(json.dumps(asked, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
