"""A checkpoint's directory, from its path, its URL or its id on the Hugging Face hub."""

import os
from pathlib import Path

from idefics_jax.utils.commit import recover
from idefics_jax.utils.paths import AnyPath, PathLike, as_path, reached

SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
WEIGHT_FILES = (["*.safetensors"], ["pytorch_model*.bin"])  # the second where there are none of the first


def checkpoint_directory(
    path_or_id: PathLike,
    patterns: list[str] | None = None,
    *,
    weights: bool = False,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> AnyPath:
    """The directory of a checkpoint; a path that is not there is taken for a hub id and downloaded.

    Args:
        path_or_id: a directory, a `gs://` or `s3://` URL of one, or an id such as `HuggingFaceM4/idefics-9b-instruct`.
        patterns: the files to download, as shell patterns; default: all but weights.
        weights: download the weights too.
        revision: branch, tag or commit on the hub.
        cache_dir: directory for downloads; default: the hub's own, `HF_HOME`.
        token: the hub's token for private repositories; default: the one of `hf auth login`.
        local_files_only: take what was downloaded before, and nothing from the network.

    Raises:
        FileNotFoundError: there is no such directory, nor a hub repository that can be reached under this name.
        OSError: the URL's server does not answer, or refuses; or a save that was stopped cannot be completed.
        ValueError: the URL cannot be understood.
    """
    path = as_path(path_or_id)
    if not isinstance(path, Path):
        return reached(path)
    if path.is_dir():
        recover(path)
        return path
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    def download(patterns: list[str]) -> Path:
        found = huggingface_hub.snapshot_download(
            os.fspath(path),
            allow_patterns=patterns,
            revision=revision,
            cache_dir=None if cache_dir is None else os.fspath(cache_dir),
            token=token,
            local_files_only=local_files_only,
        )
        return Path(found)

    try:
        directory = download(patterns or SMALL_FILES)
        for files in WEIGHT_FILES if weights else ():
            if any(download(files).glob(files[0])):
                break
        return directory
    except (HFValidationError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"{path_or_id} is not a directory, and no checkpoint of that name could be had from the hub ({reason})."
        ) from error
