"""What can be said and asked about a scene: captions, questions with answers, written pages."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from encoder_bench.data.plurals import counting_question, existence_question, plural
from encoder_bench.data.scenes.graph import CANVAS, COLOURS, KINDS, Scene, Thing

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
_OPENINGS = ("a picture of", "there are", "we see", "an image with")


def article(word: str) -> str:
    """Return `a` or `an`."""
    return "an" if word[0] in "aeiou" else "a"


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """Return a written page that lists every thing once, in random order."""
    order = rng.permutation(len(scene.things))
    parts = [f"{t.size} {t.colour} {t.kind} {t.place}" for t in (scene.things[i] for i in order)]
    return " . ".join(parts) + " ."


def captions(scene: Scene, rng: np.random.Generator, number: int = 5) -> list[str]:
    """Return different true captions: counts, salient things, relations, background."""
    makers = (_by_kind, _salient, _relation, _total)
    found: dict[str, None] = {}
    for attempt in range(60):
        if len(found) == number:
            break
        found[makers[attempt % len(makers)](scene, rng)] = None
    return list(found)


def _noun(thing: Thing, rng: np.random.Generator) -> str:
    words = [thing.colour, thing.kind]
    if rng.random() < 0.4:
        words.insert(0, thing.size)
    return f"{article(words[0])} {' '.join(words)}"


def _by_kind(scene: Scene, rng: np.random.Generator) -> str:
    kinds = list(dict.fromkeys(t.kind for t in scene.things))
    rng.shuffle(kinds)
    counts = [(scene.count(kind), kind) for kind in kinds[:3]]
    parts = [f"{NUMBERS[n]} {kind if n == 1 else plural(kind)}" for n, kind in counts]
    return f"{rng.choice(_OPENINGS)} {_join(parts)}"


def _salient(scene: Scene, rng: np.random.Generator) -> str:
    things = list(scene.things)
    rng.shuffle(things)
    parts = _join([_noun(t, rng) for t in things[:2]])
    return parts + (f" on a {scene.background} background" if rng.random() < 0.5 else "")


def _relation(scene: Scene, rng: np.random.Generator) -> str:
    if len(scene.things) < 2:
        thing = scene.things[0]
        return f"only {_noun(thing, rng)} at the {thing.place}"
    a, b = (scene.things[int(i)] for i in rng.choice(len(scene.things), 2, replace=False))
    if abs(a.x - b.x) > abs(a.y - b.y):
        relation = "left of" if a.x < b.x else "right of"
    else:
        relation = "above" if a.y < b.y else "below"
    return f"{_noun(a, rng)} {relation} {_noun(b, rng)}"


def _total(scene: Scene, rng: np.random.Generator) -> str:
    n = len(scene.things)
    noun = "object" if n == 1 else rng.choice(["objects", "shapes", "things"])
    colours = list(dict.fromkeys(t.colour for t in scene.things))[:2]
    return f"{NUMBERS[n]} {noun} on a {scene.background} background , including {_join(colours)}"


def _join(parts: list[str]) -> str:
    return " and ".join(filter(None, (" , ".join(parts[:-1]), parts[-1])))


class Question(NamedTuple):
    """A question with its one true answer; `kind` is VQAv2's question type."""

    kind: str
    text: str
    answer: str
    task: str = "vqa"


def counting_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Return one counting question per kind, present or not, in random order."""
    return [
        Question("number", counting_question(kind), str(scene.count(kind)), "oc")
        for kind in map(str, rng.permutation(KINDS))
    ]


def identification_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Return one existence question per kind, present or not, in random order."""
    return [
        Question("existence", existence_question(k), "Yes." if scene.count(k) else "No.", "mci")
        for k in map(str, rng.permutation(KINDS))
    ]


def visual_questions(scene: Scene, rng: np.random.Generator, number: int) -> list[Question]:
    """Return VQA questions of five types, each with one true answer; types are cycled at random."""
    makers = [_colour, _position, _comparison, _existence, _number]
    found: dict[str, Question] = {}
    for attempt in range(number * 6):
        if len(found) == number:
            break
        if attempt % len(makers) == 0:
            rng.shuffle(makers)
        question = makers[attempt % len(makers)](scene, rng)
        if question is not None:
            found.setdefault(question.text, question)
    return list(found.values())


def _unique(scene: Scene, rng: np.random.Generator) -> Thing | None:
    """Return a thing whose kind appears once, so that "the star" names it."""
    single = [t for t in scene.things if scene.count(t.kind) == 1]
    return single[int(rng.integers(len(single)))] if single else None


def _colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    thing = _unique(scene, rng)
    if thing is None:
        return None
    return Question("what color", f"What color is the {thing.kind}?", thing.colour)


def _position(scene: Scene, rng: np.random.Generator) -> Question | None:
    thing = _unique(scene, rng)
    if thing is None or abs(thing.x - CANVAS / 2) < 4:
        return None
    side = "left" if thing.x < CANVAS / 2 else "right"
    return Question("which side", f"Which side is the {thing.kind} on?", side)


def _comparison(scene: Scene, rng: np.random.Generator) -> Question:
    a, b = (str(k) for k in rng.choice(KINDS, 2, replace=False))
    more = rng.random() < 0.5
    pairs = [
        (x, y) for x in KINDS for y in KINDS if x != y and (scene.count(x) > scene.count(y)) == more
    ]
    if pairs:
        present = [p for p in pairs if scene.count(p[0]) + scene.count(p[1]) > 0] or pairs
        a, b = present[int(rng.integers(len(present)))]
    answer = "yes" if scene.count(a) > scene.count(b) else "no"
    return Question("are there more", f"Are there more {plural(a)} than {plural(b)}?", answer)


def _existence(scene: Scene, rng: np.random.Generator) -> Question:
    if rng.random() < 0.5:
        thing = scene.things[int(rng.integers(len(scene.things)))]
        colour, kind = thing.colour, thing.kind
    else:
        colour, kind = str(rng.choice(COLOURS)), str(rng.choice(KINDS))
        if rng.random() < 0.5:
            kind = scene.things[int(rng.integers(len(scene.things)))].kind
    answer = "yes" if scene.count(kind, colour) else "no"
    return Question("is there", f"Is there {article(colour)} {colour} {kind}?", answer)


def _number(scene: Scene, rng: np.random.Generator) -> Question:
    if rng.random() < 0.5:
        colour = str(rng.choice([t.colour for t in scene.things]))
        text = f"How many {colour} things are there?"
        return Question("how many", text, str(scene.count(colour=colour)))
    return Question("how many", "How many things are there?", str(len(scene.things)))
