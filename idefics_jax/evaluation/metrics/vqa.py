"""Answers to open questions: VQA accuracy and exact match, after the normalisation of the VQA benchmark's evaluation.

The benchmark's own program leaves answers as they are where a question's references are all the same; later ones, that
of IDEFICS's authors among them, normalise always, and so do we.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

#: The contractions that the benchmark knows. Each may be written without one of its apostrophes.
CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTED = {
    whole[: mark.start()] + whole[mark.end() :]: whole
    for whole in CONTRACTIONS.split()
    for mark in re.finditer("'", whole)
}
CONTRACTED["somebody'd"] = "somebodyd"  # the benchmark has this one the other way round
NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
NUMBERS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
ARTICLES = frozenset(("a", "an", "the"))
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"\d,\d")
FULL_STOP = re.compile(r"\.(?!\d)")


@lru_cache(maxsize=1 << 17)
def normalised(answer: str) -> str:
    """An answer as it is compared: lower case, no articles, digits for number words, apostrophes put in.

    Of punctuation, a sign that somewhere in the answer has a space beside it is removed, any other becomes a space; in
    an answer with a number such as 1,000, all signs are removed. So "t-shirt" is two words and "t-shirt, 1,000" is two
    also: "tshirt 1000". Full stops are removed unless a digit follows (the first 32; a quirk of the benchmark's).
    """
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    number = COMMA_IN_NUMBER.search(answer) is not None
    text = answer
    for sign in PUNCTUATION:
        removed = number or f"{sign} " in answer or f" {sign}" in answer
        text = text.replace(sign, "" if removed else " ")
    text = FULL_STOP.sub("", text, count=32)
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTED.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """The VQA accuracy of one answer, from 0 to 1.

    Each reference in turn is left out and min(1, matches / 3) taken of the others; the mean of that. Where there is one
    reference only, whether the answer equals it. All are normalised first (`normalised`).

    Raises:
        ValueError: there are no references.
    """
    matches = _matches(answer, references)
    count = len(references)
    if count == 1:
        return float(matches)
    one_left_out = matches * min(1, (matches - 1) / 3) + (count - matches) * min(1, matches / 3)
    return one_left_out / count


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 where the normalised answer is one of the normalised references, else 0.

    Raises:
        ValueError: there are no references.
    """
    return float(_matches(answer, references) > 0)


def _matches(answer: str, references: Sequence[str]) -> int:
    if not references:
        raise ValueError("An answer without references has no score; leave it out.")
    wanted = normalised(answer)
    return sum(normalised(reference) == wanted for reference in references)
