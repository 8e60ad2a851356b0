"""An error as a sentence: a package, the disk, a permission, memory, the network, or what was not expected."""

import errno

import pytest

from idefics_jax.cli import guarded
from idefics_jax.cli.errors import describe


def failing(error):
    """The error as raised by another library: its traceback does not end in ours."""
    try:
        exec(compile("raise error", "library", "exec"), {"error": error, "__name__": "library"})
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/a"), "/x/a cannot be written: the disk is full."),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/x/a"), "/x/a cannot be written: the disk quota is used up."),
        (
            OSError(errno.EROFS, "Read-only file system", "/x/a"),
            "/x/a cannot be written: the file system is read-only.",
        ),
        (OSError(errno.ENOENT, "No such file", "/x/a"), "/x/a does not exist."),
        (OSError(errno.EIO, "Input/output error", "/x/a"), "/x/a cannot be used: Input/output error."),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "The output cannot be written: the disk is full (No space left on device).",
        ),
        (
            RuntimeError('RESOURCE_EXHAUSTED: Error writing "/x/a" [OS error 28: ENOSPC No space left on device]'),
            "/x/a cannot be written: the disk is full.",
        ),
        (
            ValueError('PERMISSION_DENIED: Error opening "/x/a" [OS error 13: EACCES Permission denied]'),
            "/x/a cannot be written: there is no permission to write.",
        ),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 18 bytes.\nmany more lines"),
            "The memory is too small for what this command asks (RESOURCE_EXHAUSTED: Out of memory allocating 18 "
            "bytes); ask for less at a time, or use more devices.",
        ),
        (
            MemoryError(),
            "The memory is too small for what this command asks; ask for less at a time, or use more devices.",
        ),
        (ConnectionRefusedError(111, "Connection refused"), "The network failed: Connection refused."),
        (
            ModuleNotFoundError("No module named 'torch'", name="absent_one"),
            "absent_one is not installed; pip install ",
        ),
        (
            ValueError("\nlong\nshort"),
            "long (ValueError); IDEFICS_JAX_DEBUG=1 shows where this came from.",
        ),
        (KeyError("name"), "Unexpected KeyError: 'name'; IDEFICS_JAX_DEBUG=1 shows where it came from; please report"),
    ],
)
def test_what_failed_is_named(error, sentence):
    assert describe(failing(error)).startswith(sentence)


def test_a_missing_extra_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tyro", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        import tyro  # noqa: F401
    assert "pip install 'idefics-jax[train]'" in describe(caught.value)


def test_any_exception_is_one_sentence(capsys):
    def fail():
        raise AssertionError("first\nsecond")

    assert guarded("program", fail) == 1
    assert capsys.readouterr().err == (
        "program: Unexpected AssertionError: first; IDEFICS_JAX_DEBUG=1 shows where it came from; please report that "
        "to the maintainers.\n"
    )
