"""Orbax on `s3://`: it writes arrays to `gs://` alone, though TensorStore, which does it, knows both.

Three private functions of Orbax decide where TensorStore writes; they are told of `s3://` here. The tests of runs in
object stores notice if a newer Orbax is otherwise.
"""

from typing import Any

from orbax.checkpoint._src.path import atomicity, gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from idefics_jax.utils.paths import as_path, kvstore

TO_GCS = gcs_utils.get_kvstore_for_gcs
NORMALIZE = tensorstore_utils._normalize_path


def teach_s3() -> type[Any]:
    """Makes Orbax write arrays to `s3://`; returns how it marks a finished checkpoint there: by a file, as on `gs://`.

    (On a disk it renames a folder. An object store has no folders, and renames by copying every object.)
    """
    tensorstore_utils._normalize_path = lambda path: NORMALIZE(path).replace("s3:/", "s3://")
    tensorstore_utils._use_gcs_driver = lambda path: path.startswith(("gs://", "s3://"))
    gcs_utils.get_kvstore_for_gcs = _store
    return atomicity.CommitFileTemporaryPath


def _store(path: str) -> dict[str, Any]:
    if not path.startswith("s3://"):
        return TO_GCS(path)
    spec = kvstore(as_path(path))
    return {**spec, "path": spec["path"].rstrip("/")}  # the callers add the slash
