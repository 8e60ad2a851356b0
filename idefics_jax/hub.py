"""A checkpoint's directory, from its path or its id on the Hugging Face hub."""

import os
from pathlib import Path


def checkpoint_directory(path_or_id: str | os.PathLike, patterns: list[str] | None = None) -> Path:
    """The local directory of a checkpoint; one that is not there is taken for a hub id and downloaded.

    Args:
        path_or_id: a directory, or an id such as `HuggingFaceM4/idefics-9b-instruct`.
        patterns: the files to download, as shell patterns; default: all.

    Raises:
        FileNotFoundError: there is no such directory, nor a hub repository that can be reached under this name.
    """
    if os.path.isdir(path_or_id):
        return Path(path_or_id)
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(huggingface_hub.snapshot_download(os.fspath(path_or_id), allow_patterns=patterns))
    except (HFValidationError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"{path_or_id} is not a directory, and no checkpoint of that name could be had from the hub ({reason})."
        ) from error
