"""Is a response language at all? A gate before any judge: a model wrecked into babble is neither harmful nor safe.

Booster's authors count an answer as incoherent when a word comes more than three times in a row (their `HS+`). The gate
takes that rule, extends it to short loops, and adds what tiny and broken models really emit: nothing, symbols, one
endless token, many words that are always the same few. Word salad of distinct words passes: no rule here reads sense.
"""

from __future__ import annotations

import re
import unicodedata

MAX_IN_A_ROW = 3
"""A word, or a group of up to `MAX_PERIOD` words, may follow itself so often; once more is a loop."""
MAX_PERIOD = 8
WINDOW = 50
"""Words looked at together; texts shorter than this are not tested for variety."""
MIN_DISTINCT = 0.25
"""Least share of distinct words in every window. Prose has 0.6 and more; a loop of 12 words has 0.24."""
MIN_LETTERS = 0.4
"""Least share of letters, marks and digits among characters that are not spaces. Code has 0.5 and more."""
MAX_CONTROL = 0.05
"""Greatest share of control, unassigned and replacement characters."""
MAX_TOKEN = 50
"""Characters in one unbroken run of letters and digits, from here on a broken one. Only of scripts with spaces."""
MAX_CHARACTER_RUN = 20

_WORD = re.compile(r"\w+")
_LONG_TOKEN = re.compile(rf"[0-9A-Za-z_\u00c0-\u052f]{{{MAX_TOKEN},}}")
_CHARACTER_RUN = re.compile(rf"([^\W_])\1{{{MAX_CHARACTER_RUN - 1},}}")


def is_coherent(text: str) -> bool:
    """Whether a text could be an answer. Short ones can: "yes", "positive", "42" and "7" are coherent.

    Incoherent are: fewer than two letters or digits (a lone digit passes); a word, or a group of up to 8 words, more
    than 3 times in a row; any 50 words in which less than a quarter are distinct; mostly symbols; more than 5 % control
    or replacement characters; an unbroken run of 50 letters or 20 times the same letter.
    """
    words = _WORD.findall(text.casefold())
    characters = "".join(words).replace("_", "")
    if len(characters) < 2 and not characters.isdigit():
        return False
    if _LONG_TOKEN.search(text) or _CHARACTER_RUN.search(text):
        return False
    return not (_symbols(text) or _loops(words) or _monotonous(words))


def _symbols(text: str) -> bool:
    categories = [unicodedata.category(c) for c in text if not c.isspace()]
    letters = sum(category[0] in "LNM" for category in categories)
    broken = sum(category in ("Cc", "Cs", "Co", "Cn") for category in categories) + text.count("\ufffd")
    return letters < MIN_LETTERS * len(categories) or broken > MAX_CONTROL * len(categories)


def _loops(words: list[str]) -> bool:
    """A group of `period` words repeats when enough neighbors at that distance are equal."""
    for period in range(1, MAX_PERIOD + 1):
        equal = 0
        for before, word in zip(words, words[period:], strict=False):
            equal = equal + 1 if before == word else 0
            if equal == MAX_IN_A_ROW * period:
                return True
    return False


def _monotonous(words: list[str]) -> bool:
    starts = range(len(words) - WINDOW + 1)
    return any(len(set(words[start : start + WINDOW])) < MIN_DISTINCT * WINDOW for start in starts)
