"""Damaged checkpoints, and places that cannot be written."""

import json
import os
import struct
from collections.abc import Callable

from tests.bad_inputs.case import Case, Folder

SHARD = "model-00001-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
INSPECT = ("inspect", "{d}/model")
# A header of a hundred thousand names, of which the last comes twice: to compare each with all takes minutes.
NAMES = ",".join(f'"{number}":1' for number in range(100_000)) + ',"x":1,"x":1'
MANY_NAMES = struct.pack("<Q", len(NAMES) + 2) + f"{{{NAMES}}}".encode()
GENERATE = ("generate", "--model", "{d}/model", "--prompt", "Hello.")


def put(name: str, content: object) -> Callable[[Folder], None]:
    """Put a file into a copy of the good checkpoint."""

    def files(folder: Folder) -> None:
        folder.copy()
        (folder.path / "model" / name).unlink(missing_ok=True)
        folder.write(f"model/{name}", content if isinstance(content, str | bytes) else json.dumps(content))

    return files


def change(name: str, **fields: object) -> Callable[[Folder], None]:
    """Change fields of a JSON file."""

    def files(folder: Folder) -> None:
        file = folder.copy() / name
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return files


def header(edit: Callable[[dict], object], after: bytes = b"") -> Callable[[Folder], None]:
    """Change the header of a shard, and add bytes at its end."""

    def files(folder: Folder) -> None:
        file = folder.copy() / SHARD
        content = file.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        fields = json.loads(content[8 : 8 + length])
        edit(fields)
        text = json.dumps(fields).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :] + after)

    return files


def offsets(*numbers: object) -> Callable[[dict], None]:
    """Set the offsets of the first tensor."""
    return lambda fields: fields[next(name for name in fields if name != "__metadata__")].update(data_offsets=numbers)


def tensors(fields: dict) -> list[dict]:
    """Return the entries of a header's tensors, in the order of the file."""
    found = [entry for name, entry in fields.items() if name != "__metadata__"]
    return sorted(found, key=lambda entry: entry["data_offsets"])


def moved(distance: int) -> Callable[[dict], None]:
    """Move a tensor in the middle of the file by so many bytes."""

    def edit(fields: dict) -> None:
        entry = tensors(fields)[3]
        entry["data_offsets"] = [offset + distance for offset in entry["data_offsets"]]

    return edit


def special(make: Callable[[str], object]) -> Callable[[Folder], None]:
    """Put something that is no file in the place of a shard."""

    def files(folder: Folder) -> None:
        file = folder.copy() / SHARD
        file.unlink()
        make(str(file))

    return files


def only(name: str, content: object) -> Callable[[Folder], None]:
    """Keep nothing but a config and one file."""

    def files(folder: Folder) -> None:
        folder.write("model/config.json", (folder.checkpoint / "config.json").read_bytes())
        folder.write(f"model/{name}", content if isinstance(content, str | bytes) else json.dumps(content))

    return files


CASES = [
    Case("config is a list", INSPECT, "config.json holds a list", put("config.json", [])),
    Case("config is null", GENERATE, "config.json holds null", put("config.json", None)),
    Case("config is not UTF-8", INSPECT, "config.json is not UTF-8", put("config.json", b"\xff\xfe\xfa")),
    Case("config nested deep", INSPECT, "nested too deep", put("config.json", "[" * 100_000)),
    Case(
        "config number of a million digits", INSPECT, "not valid JSON", put("config.json", '{"a":1' + "0" * 10**6 + "}")
    ),
    Case("config of a billion layers", GENERATE, "num_hidden_layers", change("config.json", num_hidden_layers=10**9)),
    Case("config of a huge width", INSPECT, "hidden_size", change("config.json", hidden_size=10**15)),
    Case("layers that are true", INSPECT, "num_hidden_layers", change("config.json", num_hidden_layers=True)),
    Case("architectures that are a number", INSPECT, "architectures", change("config.json", architectures=5)),
    Case("NaN in config", INSPECT, "rms_norm_eps", change("config.json", rms_norm_eps=float("nan"))),
    Case("large images in config", INSPECT, "image_size", change("config.json", vision_config={"image_size": 30002})),
    Case("config is a git-lfs pointer", INSPECT, "git-lfs", put("config.json", POINTER)),
    Case("an adapter", INSPECT, "PEFT adapter", only("adapter_config.json", {})),
    Case("index is a list", INSPECT, "holds a list", put(INDEX, [])),
    Case("index of numbers", INSPECT, "weight_map", put(INDEX, {"weight_map": {"a": 5}})),
    Case("index leads out", INSPECT, "outside its own", put(INDEX, {"weight_map": {"a": "../x"}})),
    Case("weights are a pointer", INSPECT, "git-lfs", put(SHARD, POINTER)),
    Case("weights are a pipe", INSPECT, "named pipe", special(os.mkfifo)),
    Case("weights are a directory", INSPECT, "is a directory", special(os.mkdir)),
    Case("weights are a device", INSPECT, "is a device", special(lambda file: os.symlink("/dev/zero", file))),
    Case("trailing bytes", INSPECT, "3 bytes after", header(lambda fields: None, b"abc")),
    Case("overlapping offsets", INSPECT, "overlaps the tensor before it", header(moved(-2))),
    Case("bytes between tensors", INSPECT, "leaves bytes before it that nothing uses", header(moved(2))),
    Case("negative offsets", INSPECT, "whole numbers", header(offsets(-8, 0))),
    Case("fractional offsets", INSPECT, "whole numbers", header(offsets(0.5, 8))),
    Case("offsets of text", INSPECT, "whole numbers", header(offsets("0", "8"))),
    Case("one offset", INSPECT, "is damaged", header(offsets(0))),
    Case("header that is a list", INSPECT, "is damaged", put(SHARD, struct.pack("<Q", 2) + b"[]")),
    Case("a name twice", INSPECT, "comes twice", put(SHARD, struct.pack("<Q", 13) + b'{"a":1,"a":2}')),
    Case("a name twice after many others", INSPECT, '"x" comes twice', put(SHARD, MANY_NAMES), seconds=10),
    Case("header longer than the file", INSPECT, "cut off", put(SHARD, struct.pack("<Q", 2**60) + b"{}")),
    Case("bin that is no zip", INSPECT, "PyTorch 1.6", only("pytorch_model.bin", b"not a zip file")),
    Case("tokenizer is a list", GENERATE, "tokenizer.json holds a list", put("tokenizer.json", [])),
    Case("tokenizer without model", GENERATE, "has no model", put("tokenizer.json", {})),
    Case("token that is a number", GENERATE, "bos_token", change("tokenizer_config.json", bos_token=5)),
    Case("added token without id", GENERATE, "added_tokens.json", put("added_tokens.json", {"<image>": "x"})),
    Case("special tokens are null", GENERATE, "holds null", put("special_tokens_map.json", None)),
    Case("preprocessor is a list", GENERATE, "preprocessor_config.json holds", put("preprocessor_config.json", [])),
    Case("huge pictures", GENERATE, "image_size", change("preprocessor_config.json", image_size=30000)),
    Case("std of zero", GENERATE, "image_std", change("preprocessor_config.json", image_std=[0, 1, 1])),
    Case("mean of texts", GENERATE, "image_mean", change("preprocessor_config.json", image_mean=["a", "b", "c"])),
    Case("convert to the root", ("convert", "{checkpoint}", "/"), "cannot be the output|overlap"),
    Case("convert to its source", ("convert", "{checkpoint}", "{checkpoint}"), "overlap"),
    Case(
        "convert below a file",
        ("convert", "{checkpoint}", "{d}/file/out"),
        "not a directory|Not a directory",
        lambda folder: folder.write("file", ""),
    ),
    Case("convert where nothing can be made", ("convert", "{checkpoint}", "/proc/self/out"), "/proc/self"),
    Case("verify without a manifest", ("verify", "{checkpoint}"), "manifest.json"),
]
