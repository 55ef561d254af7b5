"""What can be said and asked about a scene: captions, questions with answers, written pages."""

from typing import NamedTuple

import numpy as np

from encoder_bench.data.readers.gvtbench import counting_question, existence_question, plural
from encoder_bench.data.scenes.graph import CANVAS, COLOURS, KINDS, Scene, Thing

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
MIN_APART = 5
"""Pixels by which a thing is left or right, above or below, for a question to ask it."""
_OPENINGS = ("a picture of", "there are", "we see", "an image with")


def article(word: str) -> str:
    """Return `a` or `an`."""
    return "an" if word[0] in "aeiou" else "a"


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """Return a written page that lists every thing once, in random order."""
    order = rng.permutation(len(scene.things))
    parts = [" ".join((*named(t), t.place)) for t in (scene.things[i] for i in order)]
    return " . ".join(parts) + " ."


def named(thing: Thing) -> tuple[str, ...]:
    """Return all words for a thing but its place: size, colour, `hidden` where partly so, kind."""
    return (thing.size, thing.colour, *(("hidden",) if thing.hidden else ()), thing.kind)


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
    """Return VQA questions of six types, each with one true answer; types are cycled at random."""
    makers = [_colour, _side, _comparison, _existence, _order, _whole]
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


def _unique(scene: Scene, rng: np.random.Generator) -> tuple[str, Thing] | None:
    """Return a thing with words that name it alone: "star", or of two "larger star"."""
    named: list[tuple[str, Thing]] = []
    for kind in KINDS:
        found = sorted((t for t in scene.things if t.kind == kind), key=lambda t: -t.radius)
        if len(found) == 1:
            named.append((kind, found[0]))
        elif len(found) == 2 and found[0].size != found[1].size:
            named += [(f"larger {kind}", found[0]), (f"smaller {kind}", found[1])]
    return named[int(rng.integers(len(named)))] if named else None


def _colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    if (found := _unique(scene, rng)) is None:
        return None
    return Question("what color", f"What color is the {found[0]}?", found[1].colour)


def _side(scene: Scene, rng: np.random.Generator) -> Question | None:
    found = _unique(scene, rng)
    if found is None or abs(found[1].x - CANVAS / 2) < MIN_APART:
        return None
    side = "left" if found[1].x < CANVAS / 2 else "right"
    return Question("which side", f"Which side is the {found[0]} on?", side)


def _comparison(scene: Scene, rng: np.random.Generator) -> Question:
    more = rng.random() < 0.5
    pairs = [
        (x, y) for x in KINDS for y in KINDS if x != y and (scene.count(x) > scene.count(y)) == more
    ]
    present = [p for p in pairs if scene.count(p[0]) + scene.count(p[1]) > 0]
    a, b = present[int(rng.integers(len(present)))]
    return Question("are there more", f"Are there more {plural(a)} than {plural(b)}?", _yes(more))


def _existence(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask of a thing, or of one's colour with another's kind, so that both must be bound."""
    one, other = (scene.things[int(i)] for i in rng.integers(len(scene.things), size=2))
    colour = one.colour if rng.random() < 0.8 else str(rng.choice(COLOURS))
    there = _yes(scene.count(other.kind, colour) > 0)
    return Question("is there", f"Is there {article(colour)} {colour} {other.kind}?", there)


def _order(scene: Scene, rng: np.random.Generator) -> Question | None:
    single = [t for t in scene.things if scene.count(t.kind) == 1]
    if len(single) < 2:
        return None
    a, b = (single[int(i)] for i in rng.choice(len(single), 2, replace=False))
    name, apart = ("left of", b.x - a.x) if rng.random() < 0.5 else ("above", b.y - a.y)
    if abs(apart) < MIN_APART:
        return None
    return Question("is the", f"Is the {a.kind} {name} the {b.kind}?", _yes(apart > 0))


def _whole(scene: Scene, rng: np.random.Generator) -> Question:
    kind = scene.things[int(rng.integers(len(scene.things)))].kind
    whole = sum(thing.kind == kind and not thing.hidden for thing in scene.things)
    return Question("how many", f"How many whole {plural(kind)} are there?", str(whole))


def _yes(true: bool) -> str:
    return "yes" if true else "no"
