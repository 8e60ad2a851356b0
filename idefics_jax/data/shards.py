"""Tar shards in the form of WebDataset: files whose names agree up to their first dot are one record."""

import tarfile
from posixpath import basename, dirname, join, normpath
from typing import Any, NamedTuple

from idefics_jax.data.fields import IMAGES, has
from idefics_jax.data.sources import Source, data_url, read_range
from idefics_jax.data.text import decode, json_object
from idefics_jax.processing.images import IMAGE_SUFFIXES
from idefics_jax.utils.paths import AnyPath, open_regular

IGNORED = ("._", ".DS_Store")  # beginnings of the names of files that macOS adds


class Part(NamedTuple):
    """A file in a shard: its name, its kind, and where its bytes are."""

    name: str
    kind: str
    start: int
    size: int


class TarShard(Source):
    """`KEY.json` holds a record's fields, `KEY.txt` its "text", `KEY.jpg`, `KEY.0.png` and so on its "images".

    Hard and symbolic links are read as the files that they lead to.
    """

    def __init__(self, path: AnyPath):
        super().__init__(path)
        try:
            with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
                members = [member for member in tar if not member.isdir()]
        except tarfile.TarError as error:
            raise ValueError(f"{path} is not an uncompressed tar archive, or is damaged: {error}.") from error
        by_name: dict[str, tarfile.TarInfo] = {}
        members = [member for member in members if not basename(member.name).startswith(IGNORED)]
        for member in members:
            if by_name.setdefault(member.name, member) is not member:
                raise ValueError(f"{path} holds {member.name} twice; keep one of them.")
        samples: dict[str, list[Part]] = {}
        for member in members:
            folder, slash, name = member.name.rpartition("/")
            key, _, suffixes = name.partition(".")
            kind = _kind(suffixes)
            if not key or kind is None:
                raise ValueError(
                    f"{path} holds {member.name}, which belongs to no field of a record (KEY.json, KEY.txt, KEY.jpg or "
                    "another kind of image); leave it out."
                )
            parts = samples.setdefault(folder + slash + key, [])
            other = next((part for part in parts if part.kind == kind != "image"), None)
            if other is not None:
                raise ValueError(
                    f"{path} holds {other.name} and {member.name} for one record, since {folder + slash + key} is the "
                    "name before the first dot; keep one of them or change the names."
                )
            file = _file(member, by_name, path)
            parts.append(Part(member.name, kind, file.offset_data, file.size))
        self._samples = list(samples.items())

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int) -> dict[str, Any]:
        record: dict[str, Any] = {}
        text = None
        images: dict[str, str] = {}
        for name, kind, start, size in self._samples[number][1]:
            content = read_range(self.path, start, size)
            if kind == "json":
                record = json_object(content)
            elif kind == "txt":
                text = decode(content)
            else:
                images[name] = data_url(content)
        if text is not None:
            if has(record, "text") and record["text"] != text:
                raise ValueError("its .txt and its .json hold different texts; keep one of them")
            record["text"] = text
        return _with_images(record, images) if images else record

    def describe(self, number: int) -> str:
        return f"{self.name} sample {self._samples[number][0]}"


def _kind(suffixes: str) -> str | None:
    suffix = suffixes.rpartition(".")[2].lower()
    if suffix in ("json", "txt"):
        return suffix
    return "image" if suffix in IMAGE_SUFFIXES else None


def _file(member: tarfile.TarInfo, by_name: dict[str, tarfile.TarInfo], path: AnyPath) -> tarfile.TarInfo:
    """The file that a member is, or that its links lead to."""
    file: tarfile.TarInfo | None = member
    for _ in by_name:  # at most as many links as there are members
        if file is None or not (file.islnk() or file.issym()):
            break
        target = file.linkname if file.islnk() else normpath(join(dirname(file.name), file.linkname))
        file = by_name.get(target)
    if file is None or not file.isreg() or file.issparse():
        raise ValueError(f"{path} holds {member.name}, which leads to no file in it; write the file itself.")
    return file


def _with_images(record: dict[str, Any], images: dict[str, str]) -> dict[str, Any]:
    """The record with a shard's own images, in the order in which its columns name them if they do."""
    order = list(images)
    for name in IMAGES:
        if has(record, name):
            values = record[name] if isinstance(record[name], list) else [record[name]]
            if len(values) != len(images):
                raise ValueError(f'its "{name}" names {len(values)} images and the shard has {len(images)} for it')
            files = {basename(file): file for file in images}
            named = [files.get(basename(value)) if isinstance(value, str) else None for value in values]
            if None not in named and len(set(named)) == len(images):
                order = named
    others = {name: value for name, value in record.items() if name not in IMAGES}
    return others | {"images": [images[file] for file in order if file is not None]}
