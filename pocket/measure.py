"""Measures the pocket model on drawing styles that it was trained on and on two that it never saw.

    python -m pocket.measure MODEL FOLDER [--failures PICTURE]

FOLDER is what `pocket.prepare` made. Prints Markdown for the model card; a greedy answer is right if it is the word
asked for. The baseline is the best that the question alone allows: the likeliest answer of its kind.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageDraw

from idefics_jax import IdeficsForVisionText2Text, IdeficsProcessor
from idefics_jax.processing.chat import message_parts
from idefics_jax.processing.images import open_image
from idefics_jax.processing.prompts import Text

BATCH = 100
SHOTS = (0, 1, 2, 4)
SHOT_KINDS = ("name", "background", "kind", "count")
QUERIES = 400  # of each of these
SEED = 8

Record = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pocket.measure", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--failures", type=Path, help="draw the first wrong names in unseen styles into this file")
    options = parser.parse_args()
    folder = options.folder
    model = IdeficsForVisionText2Text.from_pretrained(options.model, dtype="float32")
    processor = IdeficsProcessor.from_pretrained(options.model)
    data = {name: read(folder, name) for name in ("seen", "unseen")}
    right = {name: answered(model, processor, records) for name, records in data.items()}
    print_kinds(data, right)
    print_styles(data["unseen"])
    print_shots(model, processor, data)
    if options.failures:
        draw_failures(data["unseen"], options.failures)


def read(folder: Path, name: str) -> list[Record]:
    """The questions, with the paths of their pictures from here."""
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [record | {"image": folder / record["image"]} for record in records]


def answered(model: Any, processor: IdeficsProcessor, records: Sequence[Record]) -> list[bool]:
    """Asks each as a conversation's first question, and notes in the records what was said."""

    def prompt(record: Record) -> list[Any]:
        message = {"role": "user", "content": message_parts(record["question"], [record["image"]])}
        return list(processor.apply_chat_template([message], add_generation_prompt=True))

    for record, said in zip(records, said_to(model, processor, records, prompt), strict=True):
        record["said"] = said
    return [record["said"] == record["answer"] for record in records]


def said_to(
    model: Any, processor: IdeficsProcessor, records: Sequence[Record], prompt: Callable[[Record], list[Any]]
) -> list[str]:
    """The model's greedy answers, up to the end of the turn or line."""
    said: list[str] = []
    ends = [*processor.answer_ends, *processor.tokenizer.convert_tokens_to_ids(["<0x0A>"])]
    for first in range(0, len(records), BATCH):
        batch = records[first : first + BATCH]
        padded = [*batch, *[batch[-1]] * (BATCH - len(batch))]
        inputs = processor([prompt(record) for record in padded], pad_to_multiple_of=32)
        tokens = model.generate(**inputs, max_new_tokens=12, eos_token_id=ends)
        new = np.asarray(tokens)[: len(batch), inputs["input_ids"].shape[1] :]
        said += [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
    return said


def baseline(records: Sequence[Record]) -> float:
    """The share of the likeliest answer to each question: what is known without the picture."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        answers[record["kind"]][record["answer"]] += 1
    return sum(counts.most_common(1)[0][1] for counts in answers.values()) / len(records)


def print_kinds(data: dict[str, list[Record]], right: dict[str, list[bool]]) -> None:
    """A table of accuracies by kind of question."""
    print("| question | seen styles | unseen styles | without the picture |\n|---|---|---|---|")
    for kind in dict.fromkeys(record["kind"] for record in data["unseen"]):
        cells = []
        for name, records in data.items():
            of_kind = [correct for record, correct in zip(records, right[name], strict=True) if record["kind"] == kind]
            cells.append(f"{np.mean(of_kind):.1%} ({len(of_kind):,})")
        alone = baseline([record for record in data["unseen"] if record["kind"] == kind])
        print(f"| {kind} | {' | '.join(cells)} | {alone:.1%} |")
    print()


def print_styles(records: Sequence[Record]) -> None:
    """Names by unseen style, and by kind of thing."""
    names = [record for record in records if record["kind"] == "name" and len(record["styles"]) == 1]
    styles: dict[str, list[bool]] = defaultdict(list)
    for record in names:
        styles[record["styles"][0]].append(record["said"] == record["answer"])
    print("names in unseen styles:", ", ".join(f"{style} {np.mean(found):.1%}" for style, found in styles.items()))
    print(f"things: {len({record['answer'] for record in names})}\n")


def print_shots(model: Any, processor: IdeficsProcessor, data: dict[str, list[Record]]) -> None:
    """What is asked shows in the examples alone: accuracy by their number, examples in seen styles, queries not."""
    print(f"| examples | {' | '.join(SHOT_KINDS)} | all |\n|---|{'---|' * (len(SHOT_KINDS) + 1)}")
    for shots in SHOTS:
        random = np.random.default_rng(SEED)
        accuracies = []
        for kind in SHOT_KINDS:
            support, queries = ([r for r in data[name] if r["kind"] == kind] for name in ("seen", "unseen"))
            chosen = [queries[number] for number in random.permutation(len(queries))[:QUERIES]]
            examples = [[support[number] for number in random.choice(len(support), shots, False)] for _ in chosen]
            asked = [query | {"examples": found} for query, found in zip(chosen, examples, strict=True)]
            said = said_to(model, processor, asked, few_shot)
            accuracies.append(np.mean([text == query["answer"] for text, query in zip(said, asked, strict=True)]))
        cells = [f"{share:.1%}" for share in [*accuracies, np.mean(accuracies)]]
        print(f"| {shots} | {' | '.join(cells)} |", flush=True)
    print()


def few_shot(record: Record) -> list[Any]:
    """The examples and the query in one prompt, which does not say what is asked."""
    prompt: list[Any] = []
    for example in record["examples"]:
        prompt += [Text("Image:"), example["image"], Text(f"Answer: {example['answer']}\n")]
    return _merged([*prompt, Text("Image:"), record["image"], Text("Answer:")])


def _merged(prompt: Sequence[Any]) -> list[Any]:
    """Texts in a row as one, between which the processor would put the end of a turn."""
    merged: list[Any] = []
    for item in prompt:
        if merged and isinstance(item, Text) and isinstance(merged[-1], Text):
            merged[-1] = Text(merged[-1] + item)
        else:
            merged.append(item)
    return merged


def draw_failures(records: Sequence[Record], path: Path, count: int = 24, side: int = 96) -> None:
    """The first of a random order of wrong names: what it said, and what it was."""
    wrong = [r for r in records if r["kind"] == "name" and r["said"] != r["answer"]]
    order = np.random.default_rng(SEED).permutation(len(wrong))[:count]
    columns = 8
    sheet = Image.new("RGB", (columns * (side + 24), -(-len(order) // columns) * (side + 36)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, number in enumerate(order):
        left, top = place % columns * (side + 24) + 12, place // columns * (side + 36) + 4
        with open_image(wrong[number]["image"]) as image:
            sheet.paste(image.resize((side, side)), (left, top))
        draw.text((left, top + side + 2), f"{wrong[number]['said'][:18]}\n(is {wrong[number]['answer']})", fill="black")
    sheet.save(path)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
