"""What the tests of the command line share."""

import json
import re

from safetensors.numpy import load_file, save_file

PROMPT = "User:<image>What differs from <image>?"
NEW_TOKENS = 12


def change_tensor(directory, name, change):
    """Writes a shard again with one tensor changed."""
    file = directory / json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"][name]
    tensors = load_file(file)
    tensors[name] = change(tensors[name])
    save_file(tensors, file, metadata={"format": "pt"})


def check_sentence(err, message):
    """All of standard error is one sentence about `message`, after the remark on the dtype."""
    *notes, sentence = err.splitlines()
    assert all(note.startswith("Computing in float32") for note in notes), err
    assert sentence.startswith("idefics-jax: ")
    assert len(sentence) > len("idefics-jax: ") + 20
    assert re.search(message, sentence), sentence
