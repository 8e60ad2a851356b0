"""The benchmarks' own files, read into examples: VQAv2's form, COCO captions', folders of classes, and JSONL."""

from idefics_jax.evaluation.caption_files import read_captions
from idefics_jax.evaluation.examples import Data
from idefics_jax.evaluation.line_files import read_classes, read_jsonl
from idefics_jax.evaluation.vqa_files import read_vqa
from idefics_jax.utils.paths import as_path


def read_data(
    task: str, files: list[str], images: str | None, image_name: str | None, split: str | None, limit: int | None = None
) -> Data:
    """A task's data.

    Args:
        task: "vqa", "captions", "classification" or "jsonl".
        files: for "vqa" the questions and perhaps the annotations; otherwise one.
        images: the images' folder; default: the folder of the first file.
        image_name: a pattern such as `COCO_val2014_{image_id:012d}.jpg`, where the files do not name the images.
        split: of a file that holds several, the one to take.
        limit: the most examples to read.

    Raises:
        OSError, ValueError: one sentence on what is wrong with the files as a whole.
    """
    if len(files) > (2 if task == "vqa" else 1):
        expected = "the questions and their annotations" if task == "vqa" else "one file"
        raise ValueError(f"{task} reads {expected}, and {len(files)} were given.")
    first = as_path(files[0])
    folder = images if images is not None else str(first if first.is_dir() else first.parent)
    if task == "vqa":
        data = read_vqa(files, folder, image_name, limit)
    elif task == "captions":
        data = read_captions(files[0], folder, image_name, split, limit)
    elif task == "classification":
        data = read_classes(files[0], folder, limit)
    else:
        data = read_jsonl(files[0], folder, limit)
    if not data.examples and not data.problems:
        raise ValueError(f"{files[0]} holds no examples.")
    return data
