"""`pytorch_model*.bin`: read without PyTorch, bit for bit, and without running what a pickle asks for."""

import json
import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from idefics_jax.checkpoints.torch_pickle import read_torch_header
from tests.support.torch_archive import save_archive

TENSORS = {
    "half": np.arange(12, dtype=np.float16).reshape(3, 4),
    "brain": np.linspace(-3, 3, 10).astype(ml_dtypes.bfloat16).reshape(2, 5),
    "single": np.linspace(0, 1, 7, dtype=np.float32),
    "double": np.array([[1.5]]),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.float32(2.5).reshape(()),
}


def assert_same(entries, tensors):
    assert list(entries) == list(tensors)
    for name, tensor in tensors.items():
        read = entries[name].read()
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
        assert read.tobytes() == tensor.tobytes()


def test_every_dtype_is_read_bit_for_bit(tmp_path):
    save_archive(tmp_path / "a.bin", TENSORS)
    assert_same(read_torch_header(tmp_path / "a.bin"), TENSORS)


def refusal(file):
    with pytest.raises(ValueError) as caught:
        read_torch_header(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda mark: (os.system, (f"touch {mark}",)), "posix.system"),
        (lambda mark: (open, (mark, "w")), "open"),
        (lambda mark: (eval, (f"open({mark!r}, 'w')",)), "builtins.eval"),
        (lambda mark: (getattr, (os, "system")), "builtins.getattr"),
    ],
)
def test_a_malicious_pickle_does_not_run(tmp_path, call, named):
    """The file that it would make, which plain unpickling does make, is not there; nor where the call hides deeper."""
    mark = tmp_path / "was here"

    class Evil:
        def __reduce__(self):
            function, arguments = call(str(mark))
            return function, arguments if function is not getattr else ("x", "y")

    for content in (Evil(), {"weight": Evil()}, [Evil()]):
        save_archive(tmp_path / "evil.bin", {}, content=pickle.dumps(content))
        message = refusal(tmp_path / "evil.bin")
        assert "which no checkpoint needs" in message
        assert named in message
        assert not mark.exists()


def test_the_malicious_pickle_of_the_test_before_is_one(tmp_path):
    mark = tmp_path / "was here"

    class Evil:
        def __reduce__(self):
            return open, (str(mark), "w")

    pickle.loads(pickle.dumps(Evil())).close()
    assert mark.exists()


def test_what_is_no_archive_of_tensors(tmp_path):
    file = tmp_path / "a.bin"
    file.write_bytes(b"not a zip")
    assert "is cut off, or not in the format of PyTorch 1.6" in refusal(file)
    save_archive(file, TENSORS)
    file.write_bytes(file.read_bytes()[:-100])
    assert "is cut off" in refusal(file)
    save_archive(file, {}, content=pickle.dumps([1, 2]))
    assert "is not a dictionary of tensors" in refusal(file)
    save_archive(file, {}, content=b"\x80\x02garbage")
    assert "The pickle in" in refusal(file)
    save_archive(file, {"ids": np.arange(3)})  # a buffer, for whoever wants it
    assert_same(read_torch_header(file), {"ids": np.arange(3)})
    save_archive(file, {}, content=b"\x80\x02}r" + (2**30).to_bytes(4, "little") + b".")
    assert "keeps thing number 1,073,741,824" in refusal(file)


def rewrite(file, change):
    """The archive with its members changed: `change(name, content)` gives the content, or None to leave it out."""
    with zipfile.ZipFile(file) as archive:
        members = {name: change(name, archive.read(name)) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            if content is not None:
                archive.writestr(name, content)


def test_storages_that_are_not_what_the_pickle_says(tmp_path):
    file = tmp_path / "a.bin"
    save_archive(file, TENSORS)
    rewrite(file, lambda name, content: None if name.endswith("data/2") else content)
    assert "has no data for single" in refusal(file)
    save_archive(file, TENSORS)
    rewrite(file, lambda name, content: content[:-4] if name.endswith("data/2") else content)
    assert "is cut off: single needs 28 bytes and 24 are there" in refusal(file)
    save_archive(file, TENSORS)
    rewrite(file, lambda name, content: b"big" if name.endswith("byteorder") else content)
    assert "big-endian" in refusal(file)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        save_archive(tmp_path / "b.bin", {"a": np.zeros(1000, np.float32)})
        with zipfile.ZipFile(tmp_path / "b.bin") as other:
            for name in other.namelist():
                archive.writestr(name, other.read(name))
    assert "is compressed" in refusal(file)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("archive/data.pkl", "w") as member:
        for _ in range(100):
            member.write(bytes(2**20))
    assert "is compressed" in refusal(file)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    assert "is a git-lfs pointer" in refusal(file)


@pytest.mark.torch
def test_what_torch_saves_is_read_bit_for_bit(tmp_path):
    torch = pytest.importorskip("torch")
    shared = torch.randn(6, 4)
    state = {
        "half": torch.randn(3, 4).half(),
        "brain": torch.randn(2, 5).bfloat16(),
        "transposed": torch.randn(4, 6).t(),
        "part": torch.randn(10)[3:7],
        "column": torch.randn(5, 3)[:, 1],
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "scalar": torch.tensor(3.0),
        "one": shared,
        "other": shared[2:],
    }
    torch.save(state, tmp_path / "a.bin")
    assert_same(
        read_torch_header(tmp_path / "a.bin"),
        {
            name: tensor.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            if tensor.dtype == torch.bfloat16
            else tensor.detach().numpy()
            for name, tensor in state.items()
        },
    )
    torch.save(torch.nn.Linear(3, 3).state_dict(), tmp_path / "b.bin")
    assert list(read_torch_header(tmp_path / "b.bin")) == ["weight", "bias"]
    torch.save(state, tmp_path / "c.bin", _use_new_zipfile_serialization=False)
    assert "not in the format of PyTorch 1.6" in refusal(tmp_path / "c.bin")


@pytest.mark.torch
def test_the_archive_of_these_tests_is_what_torch_reads(tmp_path):
    torch = pytest.importorskip("torch")
    save_archive(tmp_path / "a.bin", TENSORS)
    state = torch.load(tmp_path / "a.bin", weights_only=True)
    assert json.dumps({name: list(tensor.shape) for name, tensor in state.items()}) == json.dumps(
        {name: list(tensor.shape) for name, tensor in TENSORS.items()}
    )
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(state[name].double().numpy(), tensor.astype(np.float64))
