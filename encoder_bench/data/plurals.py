"""Names of categories as a question says them, their plurals, and the questions of OC and MCI."""

import functools

_UNCHANGED = frozenset(
    (
        *("skis", "broccoli", "jeans", "pants", "shorts", "tights", "glasses", "sunglasses"),
        *("goggles", "tongs", "binoculars", "headphones", "bison", "food", "bread", "rice"),
    )
)
"""Words that are plurals already, or have none, and that inflect would change."""


def counting_question(name: str) -> str:
    """Return GVTBench's question of how many of a category there are."""
    return f"How many {plural(name)} are there in the image?"


def existence_question(name: str) -> str:
    """Return GVTBench's question of whether a category is there."""
    return f"Does {spoken(name)} exist in the image?"


def spoken(name: str) -> str:
    """Return a category's name as a sentence has it.

    >>> [spoken(name) for name in ("wine glass", "traffic_light", "bow_(ribbons)")]
    ['wine glass', 'traffic light', 'bow (ribbons)']
    """
    return " ".join(name.replace("_", " ").split())


@functools.cache
def plural(name: str) -> str:
    """Return the plural of a category name.

    >>> [plural(name) for name in ("wine glass", "bus", "person", "baby", "boy", "cup", "skis")]
    ['wine glasses', 'buses', 'people', 'babies', 'boys', 'cups', 'skis']
    >>> [plural(name) for name in ("fireman", "bowl_of_soup", "bow_(ribbons)", "hair drier")]
    ['firemen', 'bowls of soup', 'bows (ribbons)', 'hair driers']
    """
    import inflect

    head, bracket, rest = spoken(name).partition(" (")
    last = head.rpartition(" ")[2].lower()
    return f"{head if last in _UNCHANGED else inflect.engine().plural_noun(head)}{bracket}{rest}"
