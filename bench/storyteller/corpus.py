"""Write short children's stories from a grammar: the training text of the built-in demo model.

Everything the demo model has ever read comes from here.  A story is one plot template, expanded by
three rules until none applies:

* ``<key>`` is replaced by the story's own value for *key* (who, where, which toy, ...), which is
  drawn once per story and therefore stays the same from the first sentence to the last;
* ``{a|b|c}`` is replaced by one of its alternatives (they may be empty, and may be nested);
* a key with a capital letter, ``<He>``, gives the value with a capital letter.

A blank line in a template starts a new paragraph.  Articles ("a owl"), sentence capitals and stray
spaces are put right at the end, so that the templates need not care.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from storyteller.grammar import (
    ANIMALS,
    CHILD_HOMES,
    COLORS,
    ELDERS,
    ENDS,
    FOODS,
    GIFTS,
    HOBBIES,
    KIN,
    MIDDLES,
    NAMES,
    ONSETS,
    OPENINGS,
    PHRASES,
    PLACES,
    PLOTS,
    PRONOUNS,
    TOYS,
    TRAITS,
    Row,
)

KEY = re.compile(r"<(\w+)>")
CHOICE = re.compile(r"\{([^{}]*)\}")
SENTENCE = re.compile(r"((?:^|[.!?] |\n)\"?)([a-z])")


def made_name(rng: random.Random, sex: str) -> str:
    """Return a name out of syllables."""
    return rng.choice(ONSETS) + rng.choice(MIDDLES) + rng.choice(ENDS[sex])


def person(rng: random.Random, sex: str, suffix: str) -> Row:
    """Draw one character; its keys end in *suffix*."""
    keys = dict(PRONOUNS[sex])
    if rng.random() < 0.4:
        keys |= {"kind": sex, "title": "", "hand": "hand", "home": rng.choice(CHILD_HOMES)}
    else:
        keys |= rng.choice(ANIMALS)
        keys["title"] = " the " + keys["kind"]
    keys["name"] = rng.choice(NAMES[sex]) if rng.random() < 0.8 else made_name(rng, sex)
    keys["trait"] = rng.choice(TRAITS)
    return {key + suffix: value for key, value in keys.items()}


def cast(rng: random.Random) -> Row:
    """Draw everything that stays the same through one story."""
    # Hero and friend differ in sex and kind, so that "he" and "the fox" are never in doubt.
    sex, sex2 = rng.sample(["girl", "boy"], 2)
    hero, friend = person(rng, sex, ""), person(rng, sex2, "2")
    while friend["kind2"] == hero["kind"]:
        friend = person(rng, sex2, "2")
    place = dict(rng.choice(PLACES))
    spots = rng.sample(place.pop("spots").split(", "), 3)
    opening, day = rng.choice(OPENINGS)
    food, food2 = rng.sample(FOODS, 2)
    hobby, hobby2 = rng.sample(HOBBIES, 2)
    drawn = {
        "opening": opening,
        "day": day,
        "when": rng.choice(["day", "morning", "afternoon"]),
        "sky": "<fair>",
        "to": "to " + place["place"],
        "color": rng.choice(COLORS),
        "toy": rng.choice(TOYS),
        "made": rng.choice(GIFTS),
        "kin": rng.choice(KIN),
        "food": food,
        "food2": food2,
        "hobby": hobby,
        "hobby2": hobby2,
    }
    where = {f"spot{number}": spot for number, spot in enumerate(spots, 1)}
    return PHRASES | hero | friend | rng.choice(ELDERS) | place | where | drawn


def expand(rng: random.Random, text: str, keys: Row) -> str:
    """Apply *keys* and choices to *text* until none is left, then mend its small faults."""

    def value(match: re.Match[str]) -> str:
        key = match[1]
        # "^" asks for a capital letter once it is known which letter that is.
        return keys[key] if key in keys else "^" + keys[key.lower()]

    def choice(match: re.Match[str]) -> str:
        options: list[str] = match[1].split("|")
        return rng.choice(options)

    while "<" in text or "{" in text:
        text = CHOICE.sub(choice, KEY.sub(value, text))
    paragraphs = (" ".join(part.split()) for part in text.split("\n\n"))
    text = "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
    text = re.sub(r"\^(.)", lambda match: match[1].upper(), text)
    text = re.sub(r" ([.,!?])", r"\1", text)
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    return SENTENCE.sub(lambda match: match[1] + match[2].upper(), text)


def story(rng: random.Random) -> str:
    """Return one story."""
    keys = cast(rng)
    text, rows, changes = rng.choice(PLOTS)
    # A fox is not surprised by a fox: skip the rows that speak of the characters' own kinds.
    kinds = (keys["kind"], keys["kind2"])
    fitting = [row for row in rows if not any(kind in " ".join(row.values()) for kind in kinds)]
    return expand(rng, text, keys | changes | rng.choice(fitting))


def stories(seed: int, count: int) -> Iterator[str]:
    """Yield *count* stories, always the same ones for the same *seed*."""
    rng = random.Random(seed)
    for _ in range(count):
        yield story(rng)
