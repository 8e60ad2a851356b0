"""A real fine-tune: a small random IDEFICS learns to answer questions about images, by `python -m train` on this CPU.

    python -m benchmarks.finetuning [--work DIR] [--steps N]

The data is easy-VQA (https://github.com/vzhou842/easy-VQA, MIT licence), which its package carries: 5,000 images of
64 x 64 pixels, each with a circle, rectangle or triangle in one of eight colours, and questions with 13 answers.
Accuracy is exact match of the exported model's greedy answers to held-out questions about held-out images; beside the
model before training, the same run without the images, and each question's most frequent answer in the training data.
"""

import argparse
import json
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import easy_vqa
import jax
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from idefics_jax import IdeficsConfig, IdeficsForVisionText2Text, IdeficsImageProcessor, IdeficsProcessor
from idefics_jax.config import IdeficsPerceiverConfig, IdeficsVisionConfig
from idefics_jax.processing.prompts import END_OF_UTTERANCE, FAKE_TOKEN, IMAGE_TOKEN
from idefics_jax.processing.tokenizer import IdeficsTokenizer

SEED = 1
HELD_OUT = 1000  # questions
BATCH = 100  # of them are answered together
STEPS = 1500
CONTROL = ["<unk>", "<s>", "</s>"]
ADDED = [FAKE_TOKEN, IMAGE_TOKEN, END_OF_UTTERANCE]
SHAPES = {"circle", "rectangle", "triangle"}
KINDS = {"yes/no": "yes-no", "colour": "colour", "shape": "shape"}  # and their files
WEIGHTS = {"yes-no": 3, "colour": 1, "shape": 2}  # most questions are yes/no; shapes are learnt from the others
# Shapes are not learnt in this time at a rate of 2e-3. The second moment is to forget soon how large the first
# gradients were.
OPTIONS = """
    --trainable full --dtype float32 --frozen-dtype float32 --remat none --batch-size 32 --accumulation 2
    --data.loss-on answers --data.pack False --data.sequence-length 24 --data.max-images 1 --data.augment False
    --optimizer.learning-rate 5e-4 --optimizer.warmup-steps 50 --optimizer.b2 0.95
    --eval.batches 8 --eval.answers 64 --eval.max-new-tokens 4 --log-every 10
"""


class Asked(NamedTuple):
    """A question about an image (the path of its file)."""

    question: str
    answer: str
    image: str

    @property
    def kind(self) -> str:
        return "yes/no" if self.answer in ("yes", "no") else "shape" if self.answer in SHAPES else "colour"


class Run(NamedTuple):
    """What a training run was: its command, the seconds that it took, and where its model is."""

    command: str
    seconds: float
    model: Path


def asked(split: str) -> list[Asked]:
    """All questions about the images of "train" or "test"."""
    paths = getattr(easy_vqa, f"get_{split}_image_paths")()
    questions = zip(*getattr(easy_vqa, f"get_{split}_questions")(), strict=True)
    return [Asked(question, answer, paths[number]) for question, answer, number in questions]


def write_data(folder: Path) -> list[Asked]:
    """Writes training data by kind and the held-out questions, which it returns; in `text` the same without images."""
    held_out = random.Random(SEED).sample(asked("test"), HELD_OUT)
    files = {file: [one for one in asked("train") if one.kind == kind] for kind, file in KINDS.items()}
    for name, questions in (files | {"held-out": held_out}).items():
        records = [one._asdict() for one in questions]
        write_records(folder / f"{name}.jsonl", records)
        write_records(folder / "text" / f"{name}.jsonl", [{**record, "image": None} for record in records])
    return held_out


def write_records(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """A JSON object on each line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_model(folder: Path) -> Path:
    """A checkpoint of random weights, whose words are those of the questions.

    Weights begin larger than in the published models, whose deviation of 0.02 is for a width of thousands. Pixels lie
    around grey: an offset near the bright backgrounds makes grey and black differ in length alone, which norms hide.
    """
    images = IdeficsImageProcessor(image_size=64, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))
    processor = IdeficsProcessor(images, make_tokenizer())
    config = IdeficsConfig(
        vocab_size=len(processor.tokenizer) - len(ADDED),
        additional_vocab_size=len(ADDED),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        cross_layer_interval=1,
        alpha_initializer="ones",
        qk_layer_norms=True,
        use_resampler=True,
        initializer_range=0.1,
        dtype="float32",
        vision_config=IdeficsVisionConfig(
            embed_dim=96,
            image_size=64,
            patch_size=8,
            intermediate_size=288,
            num_hidden_layers=3,
            num_attention_heads=4,
            initializer_range=0.1,
        ),
        perceiver_config=IdeficsPerceiverConfig(
            resampler_n_latents=8,
            resampler_depth=1,
            resampler_n_heads=4,
            resampler_head_dim=24,
            qk_layer_norms_perceiver=True,
        ),
    )
    IdeficsForVisionText2Text.from_config(config, jax.random.key(SEED)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def make_tokenizer() -> IdeficsTokenizer:
    """A word is a token."""
    split = pre_tokenizers.Whitespace()
    texts = ["User: Assistant:", *(f"{one.question} {one.answer}" for one in asked("train"))]
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    ids = {word: id for id, word in enumerate([*CONTROL, *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=CONTROL[0]))
    tokenizer.pre_tokenizer = split
    tokenizer.add_special_tokens([*CONTROL, *ADDED])
    return IdeficsTokenizer(tokenizer)


def train(work: Path, name: str, data: Path, steps: int) -> Run:
    """Runs the program, which writes the trained model beside the run's directory."""
    command = ["--model", f"{work}/model", "--out", f"{work}/{name}", "--export", f"{work}/{name}-model"]
    command += ["--data.train", *(f"{data}/{file}.jsonl={weight}" for file, weight in WEIGHTS.items())]
    command += ["--data.eval", f"{data}/held-out.jsonl"]
    command += ["--steps", str(steps), "--eval.every", str(max(1, steps // 5)), *OPTIONS.split()]
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "train", *command], check=True)
    return Run(shlex.join(["python", "-m", "train", *command]), time.monotonic() - start, work / f"{name}-model")


def answers(model_directory: Path, questions: Sequence[Asked], images: bool) -> list[str]:
    """A model's greedy answers."""
    model = IdeficsForVisionText2Text.from_pretrained(model_directory)
    processor = IdeficsProcessor.from_pretrained(model_directory)
    found: list[str] = []
    for first in range(0, len(questions), BATCH):
        messages = [[{"role": "user", "content": content(one, images)}] for one in questions[first : first + BATCH]]
        inputs: Any = processor.apply_chat_template(messages, True, tokenize=True, pad_to_multiple_of=32)
        tokens = model.generate(**inputs, max_new_tokens=4, eos_token_id=processor.answer_ends)
        new = np.asarray(tokens)[:, inputs["input_ids"].shape[1] :]
        found += processor.batch_decode(new, skip_special_tokens=True)
    return [text.strip() for text in found]


def content(one: Asked, images: bool) -> list[dict[str, str]]:
    """The message that asks the question."""
    text = {"type": "text", "text": one.question}
    return [{"type": "image", "path": one.image}, text] if images else [text]


def most_frequent(questions: Sequence[Asked]) -> list[str]:
    """What is answered most often to each of the questions in the training data."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for one in asked("train"):
        counts[one.question][one.answer] += 1
    return [counts[one.question].most_common(1)[0][0] for one in questions]


def accuracies(questions: Sequence[Asked], given: Sequence[str]) -> list[float]:
    """Of all questions, and of each kind."""
    right = [(one.kind, one.answer == answer) for one, answer in zip(questions, given, strict=True)]
    return [
        float(np.mean([correct for kind, correct in right if kind in kinds]))
        for kinds in (KINDS, *([k] for k in KINDS))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.finetuning", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--work", type=Path, help="new folder to keep everything in (default: a temporary one)")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="finetuning-"))
    work.mkdir(parents=True, exist_ok=True)
    questions = write_data(work)
    model = write_model(work / "model")
    rows = {
        "before training": answers(model, questions, images=True),
        "each question's most frequent answer": most_frequent(questions),
    }
    blind = train(work, "text-only", work / "text", options.steps)
    rows["trained without the images"] = answers(blind.model, questions, images=False)
    trained = train(work, "images", work, options.steps)
    rows["trained"] = answers(trained.model, questions, images=True)
    counts = Counter(one.kind for one in questions)
    print(
        f"\n| exact match, {len(questions):,} questions | all | "
        + " | ".join(f"{k} ({counts[k]})" for k in KINDS)
        + " |"
    )
    print("|---|---|---|---|---|")
    for name, given in rows.items():
        print(f"| {name} | " + " | ".join(f"{share:.1%}" for share in accuracies(questions, given)) + " |")
    lines = [json.loads(line) for line in (work / "images" / "metrics.jsonl").read_text().splitlines()]
    steps = [(line["seconds"], line["data_seconds"]) for line in lines if "data_seconds" in line]
    step, data = np.median(steps, axis=0)
    waited = np.mean([loading > seconds for seconds, loading in steps])
    print(f"\nA step takes {step * 1000:.0f} ms, its batch is ready after {data * 1000:.1f} ms (medians); ", end="")
    print(f"in {waited:.0%} of the lines of metrics the batch took longer than the step.")
    print(f"\n{trained.seconds:.0f} s from start to exported model ({blind.seconds:.0f} s without the images) by\n")
    print(f"    {trained.command}\n\nIts report: {work / 'images' / 'report.html'}")


if __name__ == "__main__":
    main()
