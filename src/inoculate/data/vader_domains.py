"""Sentences of four kinds of writing, with a sentiment: the VADER corpora."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from statistics import median
from typing import Literal

from inoculate.core.archives import read_tar
from inoculate.core.assets import asset_named, read_member
from inoculate.core.seeds import numpy_rng
from inoculate.data.attributes import VERSION, Item, Items, Roles, cut, distinct, shuffled
from inoculate.data.splits import SPLITS, Split
from inoculate.data.worlds import Labeled, Task

DOMAINS = ("tweets", "amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets")
_VADER_MEMBER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_PER_CELL: dict[Split, int] = {"heldout": 125, "validation": 60, "attack": 250}

VaderAttribute = Literal["domain", "sentiment", "length"]


class VaderDomains(Roles):
    """Sentences with the mean rating of 20 people on −4 … 4 (Hutto & Gilbert, ICWSM 2014).

    - domain (4): tweets, Amazon reviews, movie reviews, New York Times editorials;
    - sentiment (2): rated at most −0.5, at least 0.5; the rest is left out;
    - length (2): words up to, or above, the median of the sentences of the same domain and sentiment. So it is
      independent of both by construction. It was chosen over strength of feeling (|rating| against the
      same median), which a linear probe of word counts finds in 0.62 of rows, length in 0.75.

    As many rows of each domain and sentiment as the rarest pair has: 8 × 125 held out, 60 for validation, 250 for the
    attack, the rest to train.
    """

    name: Literal["vader-domains"] = "vader-domains"
    desired: VaderAttribute = "domain"
    restricted: VaderAttribute = "sentiment"
    unrelated: VaderAttribute = "length"

    def rows(self, split: Split) -> Labeled:
        """Texts of one split.

        Raises:
            InputError: if the archive cannot be fetched.
        """
        return self.labeled(_vader()[split])

    def classes(self, task: Task) -> int:
        """Four domains; two of the others."""
        return len(DOMAINS) if self.roles[task] == "domain" else 2

    def fingerprint(self) -> str:
        """Version of the reading, and the archive's SHA-256."""
        return f"vader-domains-{VERSION}-{asset_named('vader').sha256}"

    def check(self) -> None:
        """Nothing can be wrong before the archive is fetched."""


@cache
def _vader() -> Items:
    archive = read_member("vader", _VADER_MEMBER)
    cells: dict[tuple[int, int], list[str]] = {}
    for (domain, sentiment), text in distinct(_vader_sentences(archive), of=lambda pair: pair[1]):
        cells.setdefault((domain, sentiment), []).append(text)
    size = min(map(len, cells.values()))
    parts: Items = {split: [] for split in SPLITS}
    for (domain, sentiment), texts in sorted(cells.items()):
        middle = median(len(text.split()) for text in texts)
        order = numpy_rng(0, "vader-domains", domain, sentiment).permutation(len(texts))[:size]
        items = []
        for i in order:
            values = {"domain": domain, "sentiment": sentiment, "length": int(len(texts[i].split()) > middle)}
            items.append(Item(texts[i], values))
        for split, part in cut(items, _PER_CELL).items():
            parts[split] += part
    return {split: shuffled(items, f"vader-domains {split}") for split, items in parts.items()}


def _vader_sentences(archive: bytes) -> Iterator[tuple[tuple[int, int], str]]:
    """((domain, sentiment), text) of every sentence that is rated clearly."""
    for domain, name in enumerate(DOMAINS):
        file = read_tar(archive, f"hutto_ICWSM_2014/{name}_GroundTruth.txt", _VADER_MEMBER)
        for line in file.decode("utf-8", "replace").split("\n"):
            if line.strip():
                _, rating, text = line.rstrip("\r").split("\t")
                if abs(float(rating)) >= 0.5:
                    yield (domain, int(float(rating) > 0)), text.strip()
