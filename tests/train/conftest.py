"""What tests of whole runs share."""

import pytest

from tests.support.train_runs import Place


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory of the module's own, with a checkpoint and records."""
    return Place(tmp_path_factory.mktemp("place"))
