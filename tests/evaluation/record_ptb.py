"""Records in ptb.json what pycocoevalcap's tokeniser makes of captions, ordinary and awkward.

    python -m tests.evaluation.record_ptb

It needs Java, and takes seconds.
"""

import json
import random
import re
from pathlib import Path

from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

FILE = Path(__file__).with_name("ptb.json")

WRITTEN = """
A man riding a wave on top of a surfboard.
a man riding a wave on top of a surfboard
Two dogs are playing with a red frisbee in the park
A woman's hand holds a cell phone; it isn't hers.
The Smiths' car, parked next to St. Mary's Church.
A close-up of a half-eaten ice-cream sundae (with sprinkles).
"No Parking" sign on a street at 10:30 a.m.
A stop sign that says 'STOP!' in white letters...
a bathroom with a toilet , sink and shower .
A 10-year-old boy's t-shirt reads "I'm #1".
People can't see what's behind them, can they?
They'd rather not; we've seen that they couldn't've.
A kitchen w/ stainless steel appliances and/or wood cabinets
A black & white photo of a B&B near AT&T's office.
The U.S. flag hangs beside the D.C. subway map.
Mr. Potato Head and Dr. Seuss's Cat in the Hat
A 1950's diner, a '57 Chevy and a 90s boy band.
The plane, a 747-400, lands at O'Hare at 3:45pm.
A F-16 jet flies at 1,500 mph over 2.5 million people
A pizza for $5.99 (or £4.50, or €5) - 50% off!
Half a cup of flour: ½ cup, i.e. 1/2 cup, e.g. 120 g.
A child — maybe 5 \u2013 plays on the beach
Don\u2019t walk: a “WALK” sign that isn\u2019t lit
A café in Zürich with crème brûlée, piñatas and jalapeños
A cafe\u0301 with an accent of its own
A baby smiles :) and a dog doesn't :(
I ❤️ NY written on a mug 😀 next to a ☀ symbol
A temperature of 70°F (21°C) on a sign
A tennis player hits a ball!!
What is this??? A cat?!
A man holding a racket... ready to swing
A train is at the station. .
A man, a woman; a dog: three
a dog ,a cat ;a bird
The end of the road.The beginning of another
a red,white,blue flag
A book by J.K. Rowling, Ph.D., and J. R. R. Tolkien Jr.
Vitamin C. Plan B. Size L.
The shop on 5th Ave. is closed, etc.
Sunset Blvd. in Los Angeles, Calif.
Jan. 5th, Feb. 14, Sept. 2012 and on Mon. and Tue.
No. 5 jersey, No.7 jersey, fig. 3, pp. 5-10. No. No way.
A lot in Mass. near the mass. An oz. and a lb. or 5 ft. tall
A sign with "Dept. of Transportation", approx. 5 mi. away
#selfie of @someone at www.example.com or http://example.com/a?b=1&c=2
an email address: someone@example.com.
C++ and C# books; R&D and Q&A
He's gonna go, she wanna stay, you gotta see; I cannot. Gimme! Lemme see.
Wanna's the word and 'gonna' too
y'all come back, ma'am; it's five o'clock
rock'n'roll, rock 'n' roll, salt 'n vinegar, fish'n chips
'Tis the season; 'twas the night; get 'em 'til they're gone, 'cause
ol' man goin' down o' the road; d'you see, c'mon, s'mores
jack-o'-lantern and hors d'oeuvres at L'Oreal, d'or, Hawai'i, Hallowe'en
Xi'an, Baha'i, N'Djamena and T'ang, g'day, ne'er, e'er, o'er
the boys' and girls' toys' boxes'.
cats' "eyes" 'and' ``ears'' ''nose''
<b>bold</b> words &amp; others &lt;3
a < b > c = d + e - f * g / h \\ i ^ j ~ k | l
a_b and _c_ and *d* and **e** and f__g
[left] {middle} (right) ((twice)) <angle>
9/11, 24/7, 12/25/2012, 2012-12-25, 555-1234, 3-1/2
-5 degrees, +5 degrees, .5 miles, 1.000,00 and 5'10" or 6'2" tall
a 4x4, 2x4s, 5k run, 3D movie, 7up, 1st 2nd 3rd 100th
3.5mm 10ft 1.5-inch 1/2-inch 1,000-year-old 5-foot-tall
photo.jpg, IMG_0123.JPG and report.pdf or v2.0
THE DOG ISN'T HERE, IT'S AT MCDONALD'S
two dogs -- one brown -- run--fast --- and ---- stop
-LRB- not a bracket -RRB-
A sign:5 people, and 3:1 odds; a:b
non-U.S. and U.S.-based, a.m.-p.m., u.s.a., U.K. U.K
.
...
!
An
日本 and русский words
tail end\u2026 of it \u2018quoted\u2019 \u00abwords\u00bb
""".strip("\n").split("\n")

PEOPLE = """
A man|a woman|Two people|A little girl|the boys|Several kids|A 5-year-old boy|Someone|A man's dog|My friend's cat
St. Bernard puppies|Mr. Smith|Dr. Who|A group of women|An old lady|Three players|a T-shirt vendor
"""
DOING = """
is holding|are standing next to|isn't looking at|sits on|walks by|can't reach|plays with|who's carrying|rides|'s on
eating|they've left|doesn't like|takes a photo of|is in front of|jumps over|that'll fall off
"""
THINGS = """
a skateboard|the fire hydrant|an ice-cream cone|a Coca-Cola can|a McDonald's sign|an iPhone 7|a U.S. flag|a 747
a stop sign|the kids' toys|a TV|a t.v. set|some M&M's|a '90s car|a 1950s diner|a jack-o'-lantern|a B&B|a half-pipe
a number 23 jersey|a #23 jersey|a $5 bill|a 2x4|a laptop/tablet|pizza and/or pasta|a clock at 10:30|a café|a dog
"""
ENDS = """
.| .|!|?|...||, etc.|, in black and white.| at 5 p.m.| (left)| (left).| - close up|; it's sunny.|: a "test"|!!
 on Main St.| near Park Ave|, N.Y.| in the U.S.|, aren't they?| "as is".| with a 50% discount| in 2012.|..|.,
"""


def generated(count: int) -> list[str]:
    """Captions with something awkward in many of them; the same every time."""
    choose = random.Random(0).choice
    people, doing, things, ends = (re.split(r"[|\n]", several.strip("\n")) for several in (PEOPLE, DOING, THINGS, ENDS))
    captions = []
    while len(captions) < count:
        thing, other = choose(things), choose(things)
        joined = choose(
            [thing, f"{thing} and {other}", f"{thing}, {other}", f'"{thing}"', f"({thing})", f"{thing}'s {other}"]
        )
        caption = f"{choose(people)} {choose(doing)} {joined}{choose(ends)}"
        captions.append(choose([caption, caption, caption.lower(), caption.upper()]))
    return captions


def tokens(captions: list[str]) -> list[str]:
    """What the public implementation makes of each.

    It joins captions by line breaks, over which some of its rules look; an "x" between every two keeps them apart.
    """
    lines = [line for caption in captions for line in (caption, "x")]
    found = PTBTokenizer().tokenize({index: [{"caption": line}] for index, line in enumerate(lines)})
    return [found[index][0] for index in range(0, len(lines), 2)]


if __name__ == "__main__":
    captions = WRITTEN + generated(500)
    lines = [json.dumps(pair, ensure_ascii=False) for pair in zip(captions, tokens(captions), strict=True)]
    FILE.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
