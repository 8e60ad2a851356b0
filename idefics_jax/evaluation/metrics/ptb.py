"""Captions cut into words as the COCO caption evaluation cuts them, without Java.

That evaluation (`pycocoevalcap`) runs the Penn Treebank tokeniser of Stanford CoreNLP 3.4.1, lower-cases and drops
punctuation. The rules here were found by asking it about words, not by reading it; `tests/evaluation/record_ptb.py`
records what it says of the captions that the tests compare.

What may differ, none of it usual in captions: markup with spaces in it (`<a href="x">`); phone numbers with an area
code in parentheses and mixed numbers (`3 1/2`), each of which Java makes one word with a space inside; web addresses
without `http` that have a path; rare smileys; runs of digits, letters and signs such as `1,n-1`; and signs and marks of
scripts other than Latin, Greek, Cyrillic, Chinese, Japanese and Korean.
"""

import re
import unicodedata
from functools import lru_cache

#: Tokens that the COCO evaluation drops. It means to drop brackets too, but looks for `-LRB-` when all is lower-case;
#: so `-lrb-` is a word there, as `!!`, `&` and `$` are.
PUNCTUATION = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))
#: What it knows under one of those names: other quotation marks, dashes, the ellipsis.
SAME_AS_PUNCTUATION = frozenset('"\u2018\u2019\u201b\u201c\u201d\u2039\u203a«»\u2013\u2014\u2015…') | {"---", "----"}
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
TWO_WORDS = {
    "cannot": ("can", "not"),
    "gimme": ("gim", "me"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "lemme": ("lem", "me"),
    "wanna": ("wan", "na"),
}
REPLACED = {
    "&amp;": "&", "&lt;": "<", "&gt;": ">", "&nbsp;": " ", "&quot;": '"', "&apos;": "'",
    "¢": " cents ", "£": " # ", "€": " $ ", "¤": " $ ",
    "½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ", "⅓": " 1/3 ", "⅔": " 2/3 ",
}  # fmt: skip
TO_REPLACE = re.compile("|".join(map(re.escape, REPLACED)))

#: Abbreviations that keep their full stop, ...
ABBREVIATION = (
    r"ph\.d|adj|adm|adv|al|ala|alex|apr|ariz|assn|assoc|asst|atty|aug|ave|bhd|bldg|blvd|brig|bros|calif|capt|cf|cie|"
    "cmdr|co|col|colo|comdr|conn|corp|cos|cpl|ct|dak|dec|dept|det|dr|drs|ens|esq|est|etc|ext|feb|fla|fri|ft|ga|gen|gov|"
    "govs|hon|inc|ind|insp|intl|invt|jan|jos|jr|jul|jun|kan|kans|ky|lieut|lt|ltd|maj|mar|md|messrs|mfg|mich|minn|mlle|"
    "mme|mo|mon|mont|mr|mrs|ms|msgr|mt|mtg|natl|neb|nev|nov|oct|okla|penn|pfc|ph|plc|pres|prof|profs|pte|pty|pvt|rd|rep|"
    "reps|rev|rt|sen|sens|sep|sept|seq|sfc|sgt|spc|sq|sr|st|ste|supt|sys|tel|tenn|thu|thurs|treas|tue|tues|univ|va|vs|"
    "vt|wed|wis|wisc|wm|wyo"
)
STATE = "Ark|Az|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash"  # ... only when capitalised, ...
NUMBERED = frozenset(("art", "ca", "fig", "figs", "no", "nos", "op", "pp", "prop"))  # ... only before a number.
#: Single letters keep it too, but not before these words, capitalised.
OPENING = (
    "A|About|According|Additionally|After|An|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|Many|More|Now|Once|One|"
    "Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We|What|When|While|Yet|You"
)

APOSTROPHE = r"['\u2019]"
LETTER = r"(?:[^\W\d_²³¹\u2070-\u209f\u2460-\u24ff\u2776-\u2793]|[\u0300-\u036f])"  # accents may stand alone
ALNUM = rf"(?:{LETTER}|\d)"
NEGATION = rf"[nN]{APOSTROPHE}[tT](?!{ALNUM})"
SUFFIX = rf"{APOSTROPHE}(?:[lL]{{2}}|[rRvV][eE]|[sSmMdD])(?![A-Za-z])"
WORD = rf"(?:(?!{NEGATION}){ALNUM})+(?:_{ALNUM}+)*"
ACRONYM = rf"{LETTER}(?:\.{LETTER})+(?:\.|(?!{ALNUM}))"
PART = rf"(?:{ACRONYM}|(?i:{ABBREVIATION}|no)\.(?=-)|[dDlLoO]{APOSTROPHE}{LETTER}+|{WORD})"
SHORT = rf"{ALNUM}+(?:-{LETTER}+){{0,2}}"
NAME = rf"{LETTER}{ALNUM}*"
INNER_STOP = r"(?:\.(?=[,;:]))?"  # belongs to the word before it

#: As in any lexer, a token is the longest of what these match.
PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"{PART}(?:-{PART})*{INNER_STOP}",  # dog, well-known, non-U.S.
        rf"\d+[.,]\d+(?:-{PART})+",  # 1.5-inch
        r"[+-]?[.,:]?\d+(?:[.,:]\d+)*",  # 1,000.50, 10:30, .5
        rf"{SHORT}(?:/{SHORT}){{1,2}}|\d+-\d+/\d+",  # and/or, 9/11/2001, 3-1/2
        rf"{NAME}(?:[.!?]{NAME})+{INNER_STOP}",  # example.com, and sentences with no space between them
        r"\d+(?:\.\d+)*\.(?:x|png|jpe?g|gif|txt|html?|pdf|docx?|py|exe)(?![A-Za-z0-9])",
        rf"{ACRONYM}|{LETTER}\.",
        rf"(?i:{ABBREVIATION})\.|(?:{STATE}|{STATE.upper()})\.",
        rf"[A-Z]+(?:&[A-Z]+)+{INNER_STOP}|[A-Z]+\$|[Cc](?:\+\+|#)",  # AT&T, US$, C++
        rf"{NEGATION}|{SUFFIX}",  # of "isn't" and "it's"
        rf"(?:[dlno]|[A-HJ-XZ])(?!{SUFFIX}){APOSTROPHE}{LETTER}+{INNER_STOP}",  # o'clock, d'or
        rf"{LETTER}+[aeiouyAEIOUY]{APOSTROPHE}[aeiouAEIOU]{LETTER}*",  # Hawai'i
        rf"(?i:c{APOSTROPHE}(?:est|mon)|s{APOSTROPHE}mores|cap{APOSTROPHE}n|nat{APOSTROPHE}l)",
        rf"(?i:e{APOSTROPHE}er|nor{APOSTROPHE}easter|ma{APOSTROPHE}am|ol{APOSTROPHE})",
        rf"[dDjJlL]{APOSTROPHE}|[yY]{APOSTROPHE}(?={LETTER})",  # y' all
        rf"(?i:{APOSTROPHE}(?:em|till?|cause|n{APOSTROPHE}|n(?![A-Za-z])|t(?=is|was)))",
        rf"{APOSTROPHE}(?:[1-9]0[sS]|\d\d$)",  # '90s, '72
        r"(?i:https?)://[^\s<>\"()]*[^\s<>\"().,;:!?']",
        r"(?:mailto:)?[\w.+-]+@[\w.-]*\w|@[A-Za-z_]\w*",
        r"</?[A-Za-z][\w.-]*(?:@[\w.-]+)?/?>|<<|>>|&#\d+;|-[LR][RCS]B-",
        rf"[<>]?[:;=][-o*']?[()DPpO\\|\[\]{{@](?!{ALNUM})|:3(?!{ALNUM})|[-^]_[-^]",  # smileys
        rf"#{LETTER}+|#+|[!?]+|\*+|_+|--{{1,3}}(?!-)|-{{5,}}",
        r".",
    )
)
CONTRACTED = re.compile(rf"{NEGATION}|{SUFFIX}")
STARTS = re.compile(rf"{OPENING}|{OPENING.upper()}")


def tokenized(caption: str) -> str:
    """A caption's words in lower case, without punctuation, with a space between every two.

    As `pycocoevalcap`'s `PTBTokenizer`, but for what this module's docstring names.
    """
    chunks = TO_REPLACE.sub(lambda match: REPLACED[match[0]], caption).split()
    words: list[str] = []
    for chunk, after in zip(chunks, [*chunks[1:], ""], strict=False):
        words += _words(chunk, before_number=after[:1].isdigit(), before_opening=STARTS.fullmatch(after) is not None)
    return " ".join(words)


@lru_cache(maxsize=1 << 17)
def _words(chunk: str, before_number: bool, before_opening: bool) -> tuple[str, ...]:
    """The words of text without spaces; the rest is about what comes after the space that follows it."""
    words: list[str] = []
    place = 0
    while place < len(chunk):
        matches = (pattern.match(chunk, place) for pattern in PATTERNS)
        token = max((match[0] for match in matches if match), key=len)
        place += len(token)
        token = token.lower()
        after = chunk[place : place + 2]
        if token in NUMBERED and ((after[:1] == "." and after[1:].isdigit()) or (after == "." and before_number)):
            token, place = f"{token}.", place + 1
        elif before_opening and len(token) == 2 and token[1] == "." and not after:
            token = token[0]
        parts = (token,) if CONTRACTED.match(chunk, place) else TWO_WORDS.get(token, (token,))
        words += [_spelt(word) for word in parts if not _dropped(word)]
    return tuple(words)


def _dropped(token: str) -> bool:
    if token in PUNCTUATION or token in SAME_AS_PUNCTUATION:
        return True
    # What Java cannot represent in one unit (emoji), control characters, and the mark that asks for an emoji.
    return len(token) == 1 and (token > "\uffff" or token == "\ufe0f" or unicodedata.category(token)[0] == "C")


def _spelt(token: str) -> str:
    if token in BRACKETS:
        return BRACKETS[token]
    if CONTRACTED.fullmatch(token):
        return token.replace("\u2019", "'")
    return token.replace("(", "-lrb-").replace(")", "-rrb-")  # in a smiley
