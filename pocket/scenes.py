"""Pictures of one to four things on a coloured background, made out of drawings."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy import ndimage

from pocket.drawings import Drawing

SIDE = 48  # pixels that the model sees
COLOURS = {
    "red": (205, 40, 45),
    "orange": (240, 140, 30),
    "yellow": (245, 220, 60),
    "green": (60, 160, 70),
    "blue": (45, 95, 205),
    "purple": (130, 60, 170),
    "pink": (245, 150, 195),
    "brown": (120, 75, 45),
    "black": (18, 18, 20),
    "white": (248, 248, 248),
    "grey": (135, 135, 138),
}
PLACES = ("top left", "top right", "bottom left", "bottom right")


class Scene(NamedTuple):
    """A picture and what is in it: `places` has one of PLACES for each drawing, or is empty where there is one only."""

    image: Image.Image
    drawings: list[Drawing]
    places: list[str]
    background: str

    def things(self) -> list[str | None]:
        """The name of what is alone in the picture, or of what is at each of PLACES."""
        names = [drawing.concept.name for drawing in self.drawings]
        return [dict(zip(self.places, names, strict=True)).get(place) for place in PLACES] if self.places else [*names]


def make_scene(
    drawings: Sequence[Drawing], random: np.random.Generator, change: bool = True, side: int = SIDE
) -> Scene:
    """A picture of these drawings, whose looks are changed as an artist might, or only turned a little and placed.

    side: of the picture, in pixels.
    """
    background = str(random.choice(list(COLOURS)))
    canvas = _background(COLOURS[background], side, random)
    if len(drawings) == 1:
        places, quarters, longest = [], [(0.5, 0.5)], random.uniform(0.55, 0.95)
    else:
        places = [str(place) for place in random.permutation(PLACES)[: len(drawings)]]
        quarters = [(0.25 + 0.5 * ("right" in place), 0.25 + 0.5 * ("bottom" in place)) for place in places]
        longest = random.uniform(0.4, 0.5)
    for drawing, (x, y) in zip(drawings, quarters, strict=True):
        picture = _changed(drawing, random) if change else Image.fromarray(drawing.pixels)
        picture = picture.rotate(random.normal(0, 8 if change else 3), Image.Resampling.BICUBIC, expand=True)
        picture = picture.crop(picture.getchannel("A").getbbox())
        scale = side * longest / max(picture.size)
        width, height = (max(4, round(length * scale)) for length in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        free = 0.5 - longest / 2 if len(drawings) == 1 else 0.02
        left = round((x + random.uniform(-free, free)) * side - width / 2)
        top = round((y + random.uniform(-free, free)) * side - height / 2)
        canvas.paste(picture, (left, top), picture)
    return Scene(canvas, list(drawings), places, background)


def _background(colour: tuple[int, int, int], side: int, random: np.random.Generator) -> Image.Image:
    """Plain, shaded or grainy."""
    base = np.array(colour, np.float32) + random.normal(0, 7, 3)
    pixels = np.broadcast_to(base, (side, side, 3)).copy()
    kind = random.random()
    if kind < 0.3:
        angle = random.uniform(0, 2 * np.pi)
        rows, columns = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
        pixels *= 1 + random.uniform(0, 0.12) * (np.cos(angle) * rows + np.sin(angle) * columns)[..., None]
    elif kind < 0.5:
        pixels += random.normal(0, random.uniform(2, 10), (side, side, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _changed(drawing: Drawing, random: np.random.Generator) -> Image.Image:
    """The drawing as another hand might have made it: other colours, proportions and outlines."""
    colour = _coloured if drawing.glyph else _recoloured
    picture = colour(Image.fromarray(drawing.pixels), random)
    if random.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if random.random() < 0.25:
        picture = _outlined(picture, random)
    if random.random() < 0.7:
        picture = _warped(picture, random)
    if random.random() < 0.15:
        picture = picture.filter(ImageFilter.GaussianBlur(random.uniform(0.5, 1.5)))
    return picture


def _recoloured(drawing: Image.Image, random: np.random.Generator) -> Image.Image:
    """In other hues, brighter or darker, with more contrast or less, or with few colours."""
    colours = drawing.convert("RGB")
    if random.random() < 0.25:
        hue, saturation, value = colours.convert("HSV").split()
        turn = int(random.normal(0, 20))
        hue = hue.point([(level + turn) % 256 for level in range(256)])
        colours = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    colours = ImageEnhance.Color(colours).enhance(0 if random.random() < 0.06 else random.uniform(0.5, 1.5))
    if random.random() < 0.08:  # in two colours
        dark, light = (random.integers(low, low + 128, 3) for low in (0, 128))
        colours = ImageOps.colorize(colours.convert("L"), tuple(map(int, dark)), tuple(map(int, light)))
    colours = ImageEnhance.Brightness(colours).enhance(random.uniform(0.75, 1.25))
    colours = ImageEnhance.Contrast(colours).enhance(random.uniform(0.6, 1.4))
    if random.random() < 0.1:
        levels = int(random.integers(2, 5))
        colours = colours.point([round(level * (levels - 1) / 255) * 255 // (levels - 1) for level in range(256)] * 3)
    picture = colours.convert("RGBA")
    picture.putalpha(drawing.getchannel("A"))
    return picture


def _coloured(glyph: Image.Image, random: np.random.Generator) -> Image.Image:
    """A glyph in a colour; as often as not, what its lines enclose is painted, each part by itself or all alike."""
    alpha = np.asarray(glyph.getchannel("A"))
    pixels = np.empty((*alpha.shape, 4), np.uint8)
    pixels[..., :3], pixels[..., 3] = random.integers(0, 256, 3), alpha
    if random.random() < 0.5:
        enclosed = np.asarray(ndimage.binary_fill_holes(alpha > 100)) & (alpha <= 160)
        labelled: Any = ndimage.label(enclosed)
        parts, count = labelled
        paints = random.integers(40, 256, (count + 1, 3))
        if random.random() < 0.5:
            paints[:] = paints[0]
        line = alpha[..., None] / 255
        painted = pixels[..., :3] * line + paints[parts] * (1 - line)
        pixels[..., :3] = np.where(enclosed[..., None], painted, pixels[..., :3])
        pixels[..., 3] = np.where(enclosed, 255, alpha)
    return Image.fromarray(pixels)


def _outlined(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """With a line around it."""
    width = int(random.integers(1, 4))
    size = (picture.width + 2 * width, picture.height + 2 * width)
    placed = Image.new("RGBA", size)
    placed.paste(picture, (width, width))
    shade = int(random.choice([0, 40, 255]))
    line = Image.new("RGBA", size, (shade, shade, shade, 255))
    line.putalpha(placed.getchannel("A").filter(ImageFilter.MaxFilter(2 * width + 1)))
    return Image.alpha_composite(line, placed)


def _warped(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """Stretched differently in each part, by moving the points of a grid."""
    cells = 3
    margin = 0.12
    size = (round(picture.width * (1 + 2 * margin)), round(picture.height * (1 + 2 * margin)))
    placed = Image.new("RGBA", size)
    placed.paste(picture, (round(picture.width * margin), round(picture.height * margin)))
    stretch = np.exp(random.normal(0, 0.12))
    width, height = max(8, round(size[0] * stretch)), max(8, round(size[1] / stretch))
    xs, ys = np.meshgrid(np.linspace(0, size[0], cells + 1), np.linspace(0, size[1], cells + 1))
    strength = random.uniform(0, 0.07)
    xs += random.normal(0, strength * size[0], xs.shape) + random.normal(0, 0.1) * (ys - size[1] / 2)
    ys += random.normal(0, strength * size[1], ys.shape)
    across, down = np.linspace(0, width, cells + 1).astype(int), np.linspace(0, height, cells + 1).astype(int)
    mesh = []
    for row in range(cells):
        for column in range(cells):
            box = (across[column], down[row], across[column + 1], down[row + 1])
            corners = ((row, column), (row + 1, column), (row + 1, column + 1), (row, column + 1))
            mesh.append((box, tuple(float(axis[corner]) for corner in corners for axis in (xs, ys))))
    return placed.transform((width, height), Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)
