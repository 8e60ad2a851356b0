"""Records in vqa.json what open-flamingo's copy of the VQA evaluation says of made-up questions' answers.

    pip install --no-deps --target FOLDER open-flamingo==2.0.1
    python -m tests.evaluation.record_vqa FOLDER/open_flamingo/eval/vqa_metric.py

It reads that one file, as the package itself imports torch and more.
"""

import contextlib
import importlib.util
import io
import json
import random
import sys
import warnings
from pathlib import Path
from types import ModuleType

FILE = Path(__file__).with_name("vqa.json")

ANSWERS = """
yes|Yes|YES.|yes!|yes, it is|no|No.|nope|none|zero|0|one|1|One|two|2|two dogs|2 dogs|ten|10|eleven|11|twenty one
a cat|the cat|cat|an apple|apple|the a an|A|a|The|red and white|red, white|red,white|red & white|red/white|red / white
black - white|black-white|t-shirt|t shirt|T-Shirt|tshirt|1,000|1000|1,000 people|1, 000|1,000-year-old|3.5|3.5.|.5|5.
1.000|10:30|10:30 a.m.|10:30am|10.30 am.|p.m.|U.S.A.|USA|u.s.|St. Louis|st louis|dont|don't|Don't|cant|can't|isnt
isn't|its|it's|hes|he's|im|Im|I'm|youre|you're|couldntve|couldn'tve|couldnt've|oclock|o'clock|yall|y'all|somebodyd
somebody'd|somebodys|twas|'ow's'at|ow's'at|thats|that's|whats up|what's up?|what?|what ?|who's|whos|(left)|left (side)
[x]|{x}|"quoted"|'quoted'|say "hi"|5 > 3|5>3|a=b|a = b|x_y|x _ y|me@x.com|me @ home|`tick`|back\\slash|#1|$5|$ 5|50%
50 %|C++|c + +|a;b|a; b|hello!|hello !|!|?|.|...|,|-|  spaced   out |tab\there|line\nbreak|trailing |café|Café|日本|é.
the the dog|a dog and the cat|none of them|no one|one or two|one-two|e.g. this|end.of|end. of|v2.0|192.168.0.1|50.
unanswerable
""".strip("\n")


def questions(count: int) -> list[tuple[str, list[str]]]:
    """Answers with their references, alike enough that some match; the same every time."""
    choose = random.Random(0)
    answers = [answer for line in ANSWERS.split("\n") for answer in line.split("|")]
    answers = [answer.replace("\\t", "\t").replace("\\n", "\n") for answer in answers]
    made = []
    for index in range(count):
        near = index % len(answers)  # neighbours in the list are often the same answer, written otherwise
        pool = [answers[(near + step) % len(answers)] for step in range(choose.randint(1, 4))]
        references = [choose.choice(pool) for _ in range(choose.choice([2, 3, 9, 10, 10, 10]))]
        made.append((choose.choice(pool), references))
    made.append((". " * 40, [". " * 40, "." * 40, ""]))
    return made


def record(module: ModuleType) -> list[dict[str, object]]:
    """The questions with what the evaluation makes of each: the normalised answer and its accuracy."""
    lines = []
    for answer, references in questions(400):
        truth, results = module.VQA(), module.VQA()
        listed = [{"answer": reference, "answer_id": index} for index, reference in enumerate(references)]
        truth.qa = {0: {"answers": listed, "question_type": "", "answer_type": ""}}
        results.qa = {0: {"answer": answer}}
        evaluation = module.VQAEval(None, None)
        evaluation.vqa, evaluation.vqaRes = truth, results
        evaluation.n = 12  # digits
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.evaluate([0])
        stripped = answer.replace("\n", " ").replace("\t", " ").strip()
        normalised = evaluation.processDigitArticle(evaluation.processPunctuation(stripped))
        lines.append(
            {
                "answer": answer,
                "references": references,
                "normalised": normalised,
                "accuracy": evaluation.accuracy["overall"] / 100,
            }
        )
    return lines


def load(path: Path) -> ModuleType:
    """The module in a file."""
    spec = importlib.util.spec_from_file_location("vqa_metric", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings(action="ignore"):  # it has escapes that Python no longer likes
        spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    with warnings.catch_warnings(action="ignore"):
        recorded = record(load(Path(sys.argv[1])))
    lines = [json.dumps(line, ensure_ascii=False) for line in recorded]
    FILE.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
