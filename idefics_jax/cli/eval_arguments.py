"""The options of `idefics-jax eval` and their help."""

import argparse

from idefics_jax.cli.option_types import BEAMS, PENALTY, SEED, TOKENS, number, text, whole

POSITIVE = whole(1)

EVAL = "Answers the questions of a benchmark's files and scores the answers. Standard output gets the scores."
EVAL_EXAMPLES = """
tasks and their --data:
  vqa             questions and annotations of VQAv2 or OK-VQA, TextVQA's file with both, VizWiz's list
  captions        COCO captions' form (COCO, NoCaps), TextCaps' file, Karpathy's (Flickr30k, with --split test)
  classification  a folder with a folder of images for each class, or JSONL lines {"image": ..., "label": ...}
  jsonl           lines {"image": ..., "question": ..., "answers": [...], "candidates": [...]}; candidates are optional

examples:
  idefics-jax eval vqa --model DIR --out runs/vqav2 --shots 0,4,8,16,32 \\
    --data v2_OpenEnded_mscoco_val2014_questions.json v2_mscoco_val2014_annotations.json \\
    --images val2014 --image-name "COCO_val2014_{image_id:012d}.jpg" \\
    --support v2_OpenEnded_mscoco_train2014_questions.json v2_mscoco_train2014_annotations.json \\
    --support-images train2014 --support-image-name "COCO_train2014_{image_id:012d}.jpg"
  idefics-jax eval captions --model DIR --out runs/coco --data captions_val2014.json --images val2014 \\
    --support captions_train2014.json --support-images train2014 --shots 4
  idefics-jax eval classification --model DIR --out runs/pets --data pets/test --support pets/train \\
    --shots 16 --select rices

The same command in the same folder goes on where it was stopped, by kill -9 too. docs/evaluation.md has the protocol.
"""


def shot_counts(given: str) -> list[int]:
    """The numbers that `--shots` gives, such as "0,4,8".

    Raises:
        argparse.ArgumentTypeError: what is wrong.
    """
    parts = [part.strip() for part in given.split(",")]
    try:
        return sorted({whole(0)(part) for part in parts})
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{given[:40]!a} must be whole numbers with commas between, such as 0,4,8"
        ) from None


def add_eval_options(parser: argparse.ArgumentParser) -> None:
    """Adds all but those of the model and of several hosts."""
    parser.add_argument("task", choices=("vqa", "captions", "classification", "jsonl"), metavar="TASK")
    parser.add_argument("--out", required=True, metavar="DIR", help="the run's folder, made where missing")
    _add_data(parser)
    _add_prompts(parser)
    _add_answers(parser)


def _add_data(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data")
    data.add_argument("--data", required=True, nargs="+", metavar="FILE", help="what is asked; see the tasks below")
    data.add_argument("--images", metavar="DIR", help="the images' folder (default: that of the first file)")
    data.add_argument(
        "--image-name", metavar="PATTERN", help='names of images, such as "COCO_val2014_{image_id:012d}.jpg"'
    )
    data.add_argument("--split", metavar="NAME", help="take only the images of this split, of a file that names it")
    data.add_argument("--support", nargs="+", metavar="FILE", help="where shots come from; may be the same as --data")
    data.add_argument("--support-images", metavar="DIR", help="the folder of its images (default: as --images)")
    data.add_argument("--support-image-name", metavar="PATTERN", help="(default: as --image-name)")
    data.add_argument("--support-split", metavar="NAME", help="take only these images of it")
    data.add_argument("--limit", type=POSITIVE, metavar="N", help="ask only the first N")
    data.add_argument(
        "--max-bad",
        type=number(0, 1),
        default=0.01,
        metavar="X",
        help="fail where more than this part of the data, and more than one example, is bad; 0 allows none "
        "(default %(default)s)",
    )
    data.add_argument(
        "--remote-images", action="store_true", help="fetch images at http(s) addresses, from public hosts only"
    )


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    prompts = parser.add_argument_group("prompts", "The defaults are those of IDEFICS's authors.")
    prompts.add_argument(
        "--shots", type=shot_counts, default=[0], metavar="N,...", help="examples in each prompt (default 0)"
    )
    prompts.add_argument(
        "--zero-shot",
        choices=("text-only", "none"),
        help="what 0 shots show: two support examples without their images, or nothing (default: text-only where "
        "answers are free, none where candidates are scored)",
    )
    prompts.add_argument(
        "--select",
        choices=("random", "rices"),
        default="random",
        help="shots at random, or those with the most similar images, the most similar last (default random)",
    )
    prompts.add_argument("--seed", type=SEED, default=0, metavar="N", help="of random shots (default 0)")
    prompts.add_argument(
        "--prompt",
        metavar="NAME",
        help="vqa, vizwiz, captions, photo, sentiment, hateful-memes or scienceqa (default: by the task)",
    )
    prompts.add_argument(
        "--prompt-form",
        choices=("base", "instruct"),
        help="(default: the checkpoint's own where it names one, or instruct where the tokenizer has its token)",
    )
    prompts.add_argument(
        "--prefix", type=text, metavar="TEXT", help='what a prompt begins with, say "{bos}Answer briefly."'
    )
    prompts.add_argument(
        "--example", type=text, metavar="TEXT", help='an example\'s template, say "<image>Q: {question} A: {answer} "'
    )
    prompts.add_argument("--classes", metavar="FILE", help="JSON: what the prompt calls each class or candidate")
    prompts.add_argument(
        "--max-prompt",
        type=POSITIVE,
        metavar="N",
        help="most tokens of a prompt; more are cut at its beginning (default 1024 for captions, otherwise 2048)",
    )


def _add_answers(parser: argparse.ArgumentParser) -> None:
    answers = parser.add_argument_group("answers")
    answers.add_argument("--batch-size", type=POSITIVE, default=8, metavar="N", help="prompts together (default 8)")
    answers.add_argument("--num-beams", type=BEAMS, default=3, metavar="N", help="(default 3)")
    answers.add_argument(
        "--max-new-tokens", type=TOKENS, default=15, metavar="N", help="most tokens of an answer (default 15)"
    )
    answers.add_argument(
        "--length-penalty", type=PENALTY, default=1.0, metavar="X", help="above 0 favours long answers (default 1)"
    )
    answers.add_argument(
        "--early-stopping",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="end once each beam has an answer (default: yes)",
    )
    answers.add_argument(
        "--bad-word",
        type=text,
        action="append",
        metavar="TEXT",
        help='must not occur; repeat it for more, "" for none (default: a newline, two of them, and the image tokens)',
    )
    answers.add_argument(
        "--stop",
        type=text,
        action="append",
        metavar="TEXT",
        help='an answer is cut here; repeat it for more, "" for none (default: by the prompt)',
    )
    answers.add_argument(
        "--normalize",
        choices=("sum", "mean"),
        default="sum",
        help="score a candidate by the sum or the mean of its tokens' log-probabilities (default sum)",
    )
    answers.add_argument(
        "--positive",
        type=text,
        metavar="NAME",
        help="of two candidates the one that ROC AUC is of (default: the second)",
    )
