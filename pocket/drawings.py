"""Drawings of things, from packages of icons: fetched by npm, rendered once, and kept as arrays."""

import json
import subprocess
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import resvg_py
from PIL import Image, ImageDraw, ImageFont

from idefics_jax.processing.images import open_image

SIZE = 96  # pixels of a rendered drawing's longer side


class IconSet(NamedTuple):
    """A package of vector drawings in one style.

    package: its name and version for npm.
    licence: of the drawings.
    glyphs: in one colour, so that they can be had in any.
    suffixes: what may follow a thing's name in a drawing's, as a variant of the same.
    codes: where the package has drawings by the emoji's code, as images ("{}" is the code) or as a font.
    """

    package: str
    licence: str
    author: str
    glyphs: bool = False
    suffixes: tuple[str, ...] = ("",)
    codes: str = ""


#: In training.
SEEN = {
    "noto": IconSet("@iconify-json/noto@1.2.9", "Apache-2.0", "Google"),
    "noto-v1": IconSet("@iconify-json/noto-v1@1.2.5", "Apache-2.0", "Google"),
    "fluent-emoji": IconSet("@iconify-json/fluent-emoji@1.2.7", "MIT", "Microsoft"),
    "fluent-emoji-3d": IconSet("@lobehub/fluent-emoji-3d@1.1.0", "MIT", "Microsoft", codes="assets/{}.webp"),
    "fluent-emoji-flat": IconSet("@iconify-json/fluent-emoji-flat@1.2.6", "MIT", "Microsoft"),
    "fluent-emoji-high-contrast": IconSet("@iconify-json/fluent-emoji-high-contrast@1.2.6", "MIT", "Microsoft", True),
    "fxemoji": IconSet("@iconify-json/fxemoji@1.2.2", "Apache-2.0", "Mozilla"),
    "streamline-emojis": IconSet(
        "@iconify-json/streamline-emojis@1.2.4", "CC-BY-4.0", "Streamline", suffixes=("", "-1", "-2", "-3")
    ),
    "noto-emoji": IconSet(
        "@fontsource/noto-emoji@5.3.2", "OFL-1.1", "Google", True, codes="files/noto-emoji-emoji-400-normal.woff"
    ),
    "mdi": IconSet("@iconify-json/mdi@1.2.3", "Apache-2.0", "Pictogrammers", True),
    "game-icons": IconSet("@iconify-json/game-icons@1.2.4", "CC-BY-3.0", "Game-icons.net", True),
    "ph": IconSet("@iconify-json/ph@1.2.2", "MIT", "Phosphor Icons", True, ("-fill", "-duotone")),
    "fa6-solid": IconSet("@iconify-json/fa6-solid@1.2.4", "CC-BY-4.0", "Font Awesome", True),
    "lucide": IconSet("@iconify-json/lucide@1.2.137", "ISC", "Lucide contributors", True),
    "mingcute": IconSet("@iconify-json/mingcute@1.2.8", "Apache-2.0", "MingCute Design", True, ("-fill", "-line")),
    "tabler": IconSet("@iconify-json/tabler@1.2.41", "MIT", "Paweł Kuna", True, ("", "-filled")),
    "hugeicons": IconSet("@iconify-json/hugeicons@1.2.35", "MIT", "Hugeicons", True),
}
#: Never in training: the styles in which the model is measured.
UNSEEN = {
    "twemoji": IconSet("@iconify-json/twemoji@1.2.5", "CC-BY-4.0", "Twitter and jdecked"),
    "emojione": IconSet("@iconify-json/emojione@1.2.3", "CC-BY-4.0", "Emoji One"),
}
FEWEST = 4  # coloured drawings of a thing in training

# Glyphs that show something else than the emoji of their name.
OTHER_THINGS = {"bug", "mouse", "ring"}


class Concept(NamedTuple):
    """A thing with a name, what kind of thing it is, and the names of its drawings."""

    name: str
    kind: str
    drawings: tuple[str, ...]


class Drawing(NamedTuple):
    """A thing's picture. pixels: `[height, width, 4]` uint8, cut to what is drawn. glyph: any colour will do."""

    concept: Concept
    style: str
    glyph: bool
    pixels: np.ndarray


def read_concepts() -> list[Concept]:
    """The things in `concepts.txt`."""
    lines = (Path(__file__).parent / "concepts.txt").read_text(encoding="utf-8").splitlines()
    concepts = []
    for line in lines:
        if line and not line.startswith("#"):
            kind, _, rest = line.partition(": ")
            name, _, names = rest.partition(" = ")
            concepts.append(Concept(name, kind, tuple(names.split(", ") if names else [name.replace(" ", "-")])))
    return concepts


def fetch(icons: IconSet, folder: Path) -> Path:
    """The package's archive, which stays in `folder`.

    Raises:
        RuntimeError: npm cannot fetch it.
    """
    kept = folder / (icons.package.replace("/", "+") + ".tgz")
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", icons.package, "--pack-destination", str(folder)]
        packed = subprocess.run(command, capture_output=True, text=True)
        if packed.returncode:
            raise RuntimeError(f"npm cannot fetch {icons.package}: {packed.stderr.strip()}")
        (folder / packed.stdout.split()[-1]).rename(kept)
    return kept


def read_json(archive: Path, name: str) -> dict[str, Any]:
    """A JSON file of an Iconify package."""
    with tarfile.open(archive) as tar:
        return json.loads(_read(tar, f"{name}.json"))


def render(icons: dict[str, Any], name: str, size: int = SIZE) -> np.ndarray:
    """`[height, width, 4]` uint8: a drawing of an Iconify package, its longer side about `size`."""
    icon = icons["icons"][name]
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    body = icon["body"].replace("currentColor", "#000")
    left, top = icon.get("left", 0), icon.get("top", 0)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{size}" height="{size}" viewBox="{left} {top} {width} {height}">{body}</svg>'
    )
    return _cut(open_image(BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))))


def _cut(image: Image.Image) -> np.ndarray:
    """`[height, width, 4]` uint8 without the empty space around it."""
    image = image.convert("RGBA")
    return np.asarray(image.crop(image.getchannel("A").getbbox()))


def draw(folder: Path, sets: dict[str, IconSet]) -> list[Drawing]:
    """All drawings of all things in these styles.

    Raises:
        RuntimeError: as `fetch`.
    """
    concepts, drawings = read_concepts(), []
    names = {name: code for code, name in read_json(fetch(SEEN["noto"], folder), "chars").items()}
    for style, icons in sets.items():
        archive = fetch(icons, folder)
        if icons.codes:
            codes = {concept: [names[name] for name in concept.drawings if name in names] for concept in concepts}
            found = (_from_images if "{}" in icons.codes else _from_font)(archive, icons.codes, codes)
        else:
            found = _by_name(archive, style, icons, concepts)
        drawings += [Drawing(concept, style, icons.glyphs, pixels) for concept, pixels in found]
    return drawings


def _by_name(
    archive: Path, style: str, icons: IconSet, concepts: list[Concept]
) -> Iterator[tuple[Concept, np.ndarray]]:
    stored = read_json(archive, "icons")
    for concept in concepts:
        for name in dict.fromkeys(found for one in concept.drawings for found in _names(one, style, icons, stored)):
            yield concept, render(stored, name)


def _from_font(archive: Path, file: str, codes: dict[Concept, list[str]]) -> Iterator[tuple[Concept, np.ndarray]]:
    """A font's drawings, by the hexadecimal codes of emoji."""
    with tarfile.open(archive) as tar:
        font = ImageFont.truetype(BytesIO(_read(tar, file)), SIZE)
    for concept, wanted in codes.items():
        for code in wanted:
            image = Image.new("RGBA", (2 * SIZE, 2 * SIZE))
            ImageDraw.Draw(image).text((SIZE // 2, SIZE // 2), chr(int(code, 16)), fill="black", font=font)
            yield concept, _cut(image)


def _from_images(archive: Path, files: str, codes: dict[Concept, list[str]]) -> Iterator[tuple[Concept, np.ndarray]]:
    """Images that are named by the hexadecimal codes of emoji."""
    with tarfile.open(archive) as tar:
        members = set(tar.getnames())
        for concept, wanted in codes.items():
            for code in wanted:
                for name in (files.format(code), files.format(f"{code}-fe0f")):  # the latter: drawn, not a letter
                    if f"package/{name}" in members:
                        image = open_image(BytesIO(_read(tar, name))).convert("RGBA")
                        yield concept, _cut(image.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(f"package/{name}")
    assert file is not None
    return file.read()


def check(seen: list[Drawing], unseen: list[Drawing]) -> None:
    """Raises ValueError where a thing has too few drawings to be learnt, or none in a style that is measured."""
    counts: dict[str, int] = defaultdict(int)
    styles: dict[str, set[str]] = defaultdict(set)
    for drawing in seen:
        counts[drawing.concept.name] += not drawing.glyph
    for drawing in unseen:
        styles[drawing.concept.name].add(drawing.style)
    for concept in read_concepts():
        if counts[concept.name] < FEWEST or len(styles[concept.name]) < len(UNSEEN):
            raise ValueError(
                f"{concept.name!r} has {counts[concept.name]} drawings to learn from and "
                f"{len(styles[concept.name])} styles to be measured in; take it out of concepts.txt."
            )


def _names(name: str, style: str, icons: IconSet, stored: dict[str, Any]) -> list[str]:
    """The names under which a package may have a drawing of the thing."""
    if style == "fxemoji":
        name = name.replace("-", "")  # so it writes them
    if icons.glyphs and not style.startswith("fluent") and name in OTHER_THINGS:
        return []
    found = []
    for candidate in (name + suffix for suffix in icons.suffixes):
        alias = stored.get("aliases", {}).get(candidate, {})
        if not alias.keys() - {"parent"}:  # not one that is turned or mirrored
            candidate = alias.get("parent", candidate)
        if candidate in stored["icons"]:
            found.append(candidate)
    return found
