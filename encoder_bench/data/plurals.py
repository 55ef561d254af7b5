"""Names of categories as a question says them, and their plurals, right for all of COCO's."""

from __future__ import annotations

_IRREGULAR = {
    **{"person": "people", "mouse": "mice", "tooth": "teeth", "child": "children", "foot": "feet"},
    **{"goose": "geese", "ox": "oxen", "knife": "knives", "leaf": "leaves", "loaf": "loaves"},
    **{"shelf": "shelves", "bookshelf": "bookshelves", "wolf": "wolves", "calf": "calves"},
    **{"scarf": "scarves", "half": "halves", "potato": "potatoes", "tomato": "tomatoes"},
    **{"mango": "mangoes", "buffalo": "buffaloes", "die": "dice"},
}
_SAME = frozenset(
    (
        *("sheep", "fish", "goldfish", "deer", "moose", "bison", "aircraft", "spacecraft"),
        *("scissors", "skis", "jeans", "pants", "trousers", "shorts", "glasses", "sunglasses"),
        *("goggles", "tongs", "pliers", "binoculars", "headphones", "tights", "pajamas"),
        *("broccoli", "luggage", "furniture", "food", "bread", "rice"),
    )
)
_SIBILANTS = ("s", "x", "z", "ch", "sh")
_NO_MEN = ("human", "german", "roman")


def spoken(name: str) -> str:
    """Return a category's name as a sentence has it.

    >>> [spoken(name) for name in ("wine glass", "traffic_light", "bow_(ribbons)")]
    ['wine glass', 'traffic light', 'bow (ribbons)']
    """
    return " ".join(name.replace("_", " ").split())


def plural(name: str) -> str:
    """Return the plural of a category name; only its last word changes, or the one before "of".

    >>> [plural(name) for name in ("wine glass", "bus", "person", "baby", "boy", "cup", "skis")]
    ['wine glasses', 'buses', 'people', 'babies', 'boys', 'cups', 'skis']
    >>> [plural(name) for name in ("fireman", "bowl_of_soup", "bow_(ribbons)", "hair drier")]
    ['firemen', 'bowls of soup', 'bows (ribbons)', 'hair driers']
    """
    words = spoken(name)
    for mark in (" (", " of "):
        head, found, rest = words.partition(mark)
        if found and head:
            return f"{plural(head)}{found}{rest}"
    *before, last = words.split(" ")
    return " ".join([*before, _plural_word(last)])


def _plural_word(word: str) -> str:
    low = word.lower()
    if low in _SAME:
        return word
    if low in _IRREGULAR:
        return _IRREGULAR[low]
    if low.endswith("man") and not low.endswith(_NO_MEN):
        return word[:-2] + "en"
    if word.endswith(_SIBILANTS):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"
