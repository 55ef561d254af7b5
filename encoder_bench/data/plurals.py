"""Plural forms of category names, right for all of COCO's."""

from __future__ import annotations

_IRREGULAR = {
    "person": "people",
    "mouse": "mice",
    "knife": "knives",
    "sheep": "sheep",
    "scissors": "scissors",
    "skis": "skis",
    "broccoli": "broccoli",
    "tooth": "teeth",
    "child": "children",
    "man": "men",
    "woman": "women",
}
_SIBILANTS = ("s", "x", "z", "ch", "sh")


def plural(name: str) -> str:
    """Return the plural of a category name; only its last word changes.

    >>> [plural(name) for name in ("wine glass", "bus", "person", "baby", "boy", "cup")]
    ['wine glasses', 'buses', 'people', 'babies', 'boys', 'cups']
    """
    *before, last = name.split(" ")
    if last in _IRREGULAR:
        many = _IRREGULAR[last]
    elif last.endswith(_SIBILANTS):
        many = last + "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        many = last[:-1] + "ies"
    else:
        many = last + "s"
    return " ".join([*before, many])
