"""Checkpoints, and the command run inside the test."""

import shutil

import pytest

from conversion import targets
from conversion.cli import main
from tests.support.conversion import converted
from tests.support.make_checkpoint import SMALL, make_checkpoint
from tests.support.random_checkpoint import save_random_checkpoint

LARGE = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "vocab_size": 32000,
    "vision_config": {"num_attention_heads": 4},
    "perceiver_config": {"resampler_n_heads": 4},
}


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """All files of the published layout: two shards in bfloat16, tokenizer and processor. Not to be changed."""
    return make_checkpoint(tmp_path_factory.mktemp("published") / "checkpoint", changes=SMALL)


@pytest.fixture(scope="session")
def published_orbax(published, tmp_path_factory):
    """The same, converted. Not to be changed."""
    return converted(published, tmp_path_factory.mktemp("published") / "orbax")


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory):
    """A smaller one in float32, in one file, whose layers are several of each kind. Not to be changed."""
    return save_random_checkpoint(tmp_path_factory.mktemp("random") / "checkpoint")


@pytest.fixture
def checkpoint(random_checkpoint, tmp_path):
    """A copy of that, to be changed."""
    return shutil.copytree(random_checkpoint, tmp_path / "checkpoint")


@pytest.fixture(scope="session")
def meshed(tmp_path_factory):
    """One whose heads divide by four, and what it converts to. Not to be changed."""
    changes = {"vision_config": {"num_attention_heads": 4}, "perceiver_config": {"resampler_n_heads": 4}}
    source = save_random_checkpoint(tmp_path_factory.mktemp("meshed") / "source", changes)
    return source, converted(source, source.parent / "orbax")


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """One of 0.3 GB, whose conversion takes a while and several units. Not to be changed."""
    return save_random_checkpoint(tmp_path_factory.mktemp("large") / "checkpoint", LARGE)


@pytest.fixture
def small_units(monkeypatch):
    """Units of a few kilobytes, so that small checkpoints have many."""
    monkeypatch.setattr(targets, "UNIT_BYTES", 2**13)


@pytest.fixture
def conversion(capsys):
    """Runs `python -m conversion` with these arguments; gives what it printed: where it fails, to standard error."""

    def run(*arguments, status=0):
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert code == status, out + err
        return err if status else out

    return run
