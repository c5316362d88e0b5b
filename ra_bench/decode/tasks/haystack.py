"""Filler text, keys and values, all from a seed: nothing is downloaded.

The noise is RULER's and InfiniteBench's: five short sentences, again and again. Where RULER takes essays that
cannot be shipped, the prose of Python's own language reference (`pydoc_data`, in every Python) stands in; as
RULER does, it begins anew where it ends. Another Python version has another text.
"""

from __future__ import annotations

import functools
import random
import re
import uuid
from collections.abc import Callable, Iterator

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

# RULER puts needles at 40 depths, evenly spread from the first to the last word of the haystack.
DEPTHS = tuple(step / 39 for step in range(40))

_ADJECTIVES = str.split(
    """able amber ample ancient arctic autumn blunt bold brave brief bright brisk broad bronze calm candid
    careful central cheerful civic clean clear clever coastal cold copper cosmic crisp curious daring deep
    distant dry eager early earnest eastern elder electric empty endless even exact faint fair famous fast
    final fine firm fond formal frank fresh frozen gentle giant glad global golden grand grave great green
    happy hidden hollow honest humble icy ideal idle inner ivory jolly keen kind large late lively local lofty
    lone loud loyal lucky lunar marine mellow merry mild modern modest narrow native neat noble northern odd
    open orange pale patient plain polite proud pure quick quiet rapid rare ready regal rich rough round royal
    rustic secret serene sharp silent silver simple sleepy slim smooth solar solid southern spare steady stern
    stout strong sturdy subtle sudden sunny swift tall tame tender thin tidy tiny urban vast velvet vivid warm
    wary western wide wild wise witty wooden young zealous"""
)
_NOUNS = str.split(
    """acorn anchor anvil apple arch arrow badger bakery barrel basin beacon beetle bell birch bishop blanket
    boulder bridge bronco bucket butter cabin cactus camel candle canyon carpet castle cedar cellar chapel
    cherry chisel circus clover cobalt comet compass copper coral cottage cradle crater cricket crown crystal
    dagger daisy desert diamond dolphin donkey dragon drum eagle elbow ember engine falcon feather fiddle
    forest fossil fountain galaxy garden garlic glacier goblet granite hammer harbor harvest hazel helmet
    heron hornet island jacket jaguar jigsaw jungle kettle kitten ladder lagoon lantern lemon lizard lobster
    locket magnet mango maple marble meadow mirror monsoon mosaic mountain needle nickel nutmeg oasis ocean
    orchard otter oyster paddle palace panther parrot pebble pepper pigeon pillow pirate planet pocket pony
    prairie puzzle quarry rabbit radish raven ribbon river rocket saddle salmon sandal scarf shadow shelter
    shovel sparrow spider spoon stable statue temple thistle ticket tiger timber tower trumpet tulip tunnel
    turtle valley violin walnut walrus whistle willow window wizard zebra"""
)
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


def spread(number: int) -> float:
    """A depth in [0, 1) for sample `number`; however many samples there are, their depths are spread evenly.

    Weyl's sequence of the golden ratio: InfiniteBench steps evenly, but must know how many samples there are.
    """
    return (number * 0.6180339887498949 + 0.5) % 1.0


def insert(lines: list[str], needles: list[str], depths: list[float]) -> list[str]:
    """`lines` with each of `needles` put in where its depth, a share of the lines, comes to lie."""
    places = sorted(
        (round(depth * len(lines)), number) for number, depth in enumerate(depths)
    )  # equal places keep the order of the needles
    out, done = [], 0
    for place, number in places:
        out += [*lines[done:place], needles[number]]
        done = place
    return out + lines[done:]


def essay(start: int, words: int) -> list[str]:
    """Sentences of a number of `words` of prose, from word `start`, the last one cut short."""
    prose = _prose_words()
    start %= len(prose)
    around = prose[start:] + prose[:start]
    text = " ".join((around * (words // len(around) + 1))[:words])
    return re.split(r"(?<=[.!?]) +", text)


@functools.cache
def _prose_words() -> tuple[str, ...]:
    """The words of Python's language reference, of those paragraphs that are prose and not tables or code."""
    from pydoc_data.topics import topics

    prose: dict[str, None] = {}
    for name in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[name]):
            lines = paragraph.split("\n")
            text = " ".join(line.strip() for line in lines)
            plain = all(re.match(r"[\w\"(]", line) for line in lines)
            if plain and len(text) >= 80 and re.fullmatch(r"[A-Z].*\.", text):
                prose[text] = None
    return tuple(" ".join(prose).split())


def distinct(rng: random.Random, make: Callable[[random.Random], str]) -> Iterator[str]:
    """What `make` gives, without end and never the same twice."""
    seen: set[str] = set()
    while True:
        tries = (make(rng) for _ in range(100))
        made = next((one for one in tries if one not in seen), make(rng))
        while made in seen:  # hardly any are left: a longer one
            made = f"{made}-{make(rng)}"
        seen.add(made)
        yield made


def word_pair(rng: random.Random) -> str:
    """An adjective and a noun, as "brave-otter"."""
    return f"{rng.choice(_ADJECTIVES)}-{rng.choice(_NOUNS)}"


def number_of(digits: int) -> Callable[[random.Random], str]:
    """A maker of numbers with so many digits, the first not 0."""
    return lambda rng: str(rng.randrange(10 ** (digits - 1), 10**digits))


def random_uuid(rng: random.Random) -> str:
    """A UUID, version 4, from the seeded generator."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def made_up_word(rng: random.Random) -> str:
    """A word of three syllables that no language need have; all are six letters, so none holds another."""
    return "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(3))


def letters(count: int, alphabet: str) -> Callable[[random.Random], str]:
    """A maker of strings of `count` letters."""
    return lambda rng: "".join(rng.choice(alphabet) for _ in range(count))
