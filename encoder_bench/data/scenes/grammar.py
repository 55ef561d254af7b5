"""What can be said and asked about a scene: captions, questions with answers, written pages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from encoder_bench.data.plurals import plural
from encoder_bench.data.scenes.graph import CANVAS, COLOURS, KINDS, Scene, Thing

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


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
    makers = (_caption_by_kind, _caption_salient, _caption_relation, _caption_total)
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


def _caption_by_kind(scene: Scene, rng: np.random.Generator) -> str:
    kinds = list(dict.fromkeys(t.kind for t in scene.things))
    rng.shuffle(kinds)
    parts = []
    for kind in kinds[:3]:
        n = scene.count(kind)
        parts.append(f"{NUMBERS[n]} {kind if n == 1 else plural(kind)}")
    opening = str(rng.choice(["a picture of", "there are", "we see", "an image with"]))
    return f"{opening} {_join(parts)}"


def _caption_salient(scene: Scene, rng: np.random.Generator) -> str:
    things = list(scene.things)
    rng.shuffle(things)
    parts = [_noun(t, rng) for t in things[:2]]
    ending = f" on a {scene.background} background" if rng.random() < 0.5 else ""
    return _join(parts) + ending


def _caption_relation(scene: Scene, rng: np.random.Generator) -> str:
    if len(scene.things) < 2:
        thing = scene.things[0]
        return f"only {_noun(thing, rng)} at the {thing.place}"
    i, j = rng.choice(len(scene.things), 2, replace=False)
    a, b = scene.things[int(i)], scene.things[int(j)]
    if abs(a.x - b.x) > abs(a.y - b.y):
        relation = "left of" if a.x < b.x else "right of"
    else:
        relation = "above" if a.y < b.y else "below"
    return f"{_noun(a, rng)} {relation} {_noun(b, rng)}"


def _caption_total(scene: Scene, rng: np.random.Generator) -> str:
    n = len(scene.things)
    noun = "object" if n == 1 else str(rng.choice(["objects", "shapes", "things"]))
    colours = list(dict.fromkeys(t.colour for t in scene.things))[:2]
    return f"{NUMBERS[n]} {noun} on a {scene.background} background , including {_join(colours)}"


def _join(parts: list[str]) -> str:
    if len(parts) < 2:
        return parts[0]
    return " , ".join(parts[:-1]) + f" and {parts[-1]}"


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its one true answer; `kind` is VQAv2's question type."""

    kind: str
    text: str
    answer: str
    task: str = "vqa"


def counting_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Return one counting question per kind, present or not, in random order."""
    return [
        Question(
            "number", f"How many {plural(k)} are there in the image?", str(scene.count(k)), "oc"
        )
        for k in (str(kind) for kind in rng.permutation(KINDS))
    ]


def identification_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Return one existence question per kind, present or not, in random order."""
    return [
        Question(
            "existence", f"Does {k} exist in the image?", "Yes." if scene.count(k) else "No.", "mci"
        )
        for k in (str(kind) for kind in rng.permutation(KINDS))
    ]


def visual_questions(scene: Scene, rng: np.random.Generator, number: int) -> list[Question]:
    """Return VQA questions of five types, each with one true answer; types are cycled at random."""
    makers = [_ask_colour, _ask_position, _ask_comparison, _ask_existence, _ask_number]
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


def _ask_colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    thing = _unique(scene, rng)
    if thing is None:
        return None
    return Question("what color", f"What color is the {thing.kind}?", thing.colour)


def _ask_position(scene: Scene, rng: np.random.Generator) -> Question | None:
    thing = _unique(scene, rng)
    if thing is None:
        return None
    side = "left" if thing.x < CANVAS / 2 else "right"
    if abs(thing.x - CANVAS / 2) < 4:
        return None
    return Question("which side", f"Which side is the {thing.kind} on?", side)


def _ask_comparison(scene: Scene, rng: np.random.Generator) -> Question | None:
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


def _ask_existence(scene: Scene, rng: np.random.Generator) -> Question | None:
    if rng.random() < 0.5:
        thing = scene.things[int(rng.integers(len(scene.things)))]
        colour, kind = thing.colour, thing.kind
    else:
        colour, kind = str(rng.choice(COLOURS)), str(rng.choice(KINDS))
        if rng.random() < 0.5:
            kind = scene.things[int(rng.integers(len(scene.things)))].kind
    answer = "yes" if scene.count(kind, colour) else "no"
    return Question("is there", f"Is there {article(colour)} {colour} {kind}?", answer)


def _ask_number(scene: Scene, rng: np.random.Generator) -> Question | None:
    if rng.random() < 0.5:
        colour = str(rng.choice([t.colour for t in scene.things]))
        text = f"How many {colour} things are there?"
        return Question("how many", text, str(scene.count(colour=colour)))
    return Question("how many", "How many things are there?", str(len(scene.things)))
