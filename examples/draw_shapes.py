"""Draws a small data set to try fine-tuning on: circles, squares and triangles under names of their own.

`python examples/draw_shapes.py` makes the folders `shapes` (60 images to train on) and `held-out` (90 others).
"""

import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

SIZE = 96
ANSWERS = ("ball", "box", "mountain")
CORNERS = {"box": ((-1, -1), (1, -1), (1, 1), (-1, 1)), "mountain": ((0, -1), (1, 1), (-1, 1))}


def draw(answer: str) -> Image.Image:
    """Draw one shape of random size, place and colors."""
    paper = tuple(random.randrange(200, 256) for _ in range(3))
    ink = tuple(random.randrange(0, 160) for _ in range(3))
    image = Image.new("RGB", (SIZE, SIZE), paper)
    half = random.randrange(16, 36)
    x, y = (random.randrange(half, SIZE - half) for _ in range(2))
    canvas = ImageDraw.Draw(image)
    if answer == "ball":
        canvas.ellipse((x - half, y - half, x + half, y + half), ink)
    else:
        canvas.polygon([(x + half * right, y + half * down) for right, down in CORNERS[answer]], ink)
    return image


random.seed(0)
for name, count in ("shapes", 60), ("held-out", 90):
    Path(name).mkdir(exist_ok=True)
    with Path(name, "metadata.jsonl").open("w") as file:
        for number in range(count):
            answer = ANSWERS[number % 3]
            draw(answer).save(Path(name, f"{number}.png"))
            record = {"file_name": f"{number}.png", "question": "What is this?", "answer": answer}
            file.write(json.dumps(record) + "\n")
