"""A checkpoint, images, and ways to run the command inside the test."""

import io

import numpy as np
import pytest
from PIL import Image

from idefics_jax.cli import main
from tests.support.commands import NEW_TOKENS, PROMPT
from tests.support.make_checkpoint import SMALL, make_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("cli") / "checkpoint", changes=SMALL)


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Two images of noise."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = [folder / "a.jpg", folder / "b b.png"]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (40, 50, 3), np.uint8)).resize((224, 224)).save(path)
    return paths


@pytest.fixture
def generate(checkpoint, images, capsys):
    """Runs `idefics-jax generate` on PROMPT with more arguments; gives what it printed."""

    def run(*arguments, status=0, model=checkpoint, prompt=("--prompt", PROMPT), images=images):
        given = [argument for path in images for argument in ("--image", str(path))]
        limit = () if "--max-new-tokens" in arguments else ("--max-new-tokens", str(NEW_TOKENS))
        code = main(["generate", "--model", str(model), *prompt, *given, *limit, *map(str, arguments)])
        out, err = capsys.readouterr()
        assert code == status, err
        assert not (status and out), "nothing on standard output"
        return err if status else out

    return run


@pytest.fixture
def chat(checkpoint, capsys, monkeypatch):
    """Runs `idefics-jax chat` on lines of input; gives the lines it printed and its remarks."""

    def run(*lines, status=0, model=checkpoint, mesh=None):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(("\n".join(lines)).encode())))
        where = [] if mesh is None else ["--mesh", mesh]
        code = main(["chat", "--model", str(model), "--max-new-tokens", str(NEW_TOKENS), *where])
        out, err = capsys.readouterr()
        assert code == status, err
        return out.splitlines(), err

    return run
