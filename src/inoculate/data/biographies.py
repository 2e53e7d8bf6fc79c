"""Fictional biographies in made-up words: a text world that costs nothing, in which every label can be reckoned."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import NonNegativeInt, PositiveInt

from inoculate.core.seeds import numpy_rng
from inoculate.core.types import Value
from inoculate.data.worlds import Labeled, Task

if TYPE_CHECKING:
    import numpy as np

    from inoculate.data.splits import Split

VERSION = "1"
"""Part of the fingerprint: raised when a word, a probability or the order of draws changes."""

PRONOUNS = ("she", "he")
"""By gender: class 0, class 1."""

_FILLERS, _FILLER_WORDS = 4, 60
_TIMES = 4  # one pronoun is not enough: from 10 texts, five noisy cues drown it


class Cues(NamedTuple):
    """How an attribute shows in a text: `count` words, each of the right class with probability `right`."""

    classes: int
    words: int
    """Words of each class."""
    count: int
    right: float


CUES: dict[Task, Cues] = {
    "desired": Cues(classes=6, words=30, count=4, right=0.8),  # profession
    "restricted": Cues(classes=2, words=80, count=5, right=0.78),  # gender
    "unrelated": Cues(classes=4, words=20, count=2, right=0.9),  # region
}


class Biographies(Value):
    """Texts of 15 words, shuffled: cues to a profession (6), a gender (2) and a region (4), and words without meaning.

    The three attributes are drawn independently and evenly. A cue is a word of the right class with the probability in
    `CUES`, otherwise of another class, evenly; so no label can be told with certainty. Counting a text's cues is right
    for 0.926 of genders (Σ_{k≥3} C(5,k) 0.78ᵏ 0.22⁵⁻ᵏ) and 0.90 of regions. Ours, after the shape of Bias in Bios.

    `pronouns` adds the same pronoun in four places, which gives the gender away: as that data set is before its
    pronouns are neutralized.

    `retains` gives every row ten binary targets that each defense is asked to keep: whether a word of each profession,
    and of each region, stands in the text. Without them whatever is trained forgets the regions, and blocking cannot
    be told from forgetting.
    """

    name: Literal["biographies"] = "biographies"
    pronouns: bool = False
    retains: bool = False
    seed: NonNegativeInt = 0
    train: PositiveInt = 20_000
    attack: PositiveInt = 2_000
    validation: PositiveInt = 500
    heldout: PositiveInt = 1_000

    def rows(self, split: Split) -> Labeled:
        """Texts of one split, from a random stream of its own. `pronouns` changes nothing else about them."""
        import numpy as np

        n = getattr(self, split)
        labels: dict[Task, np.ndarray] = {
            task: numpy_rng(self.seed, "biographies", split, task).integers(cues.classes, size=n)
            for task, cues in CUES.items()
        }
        columns = [self._cues(split, task, labels[task]) for task in CUES]
        columns.append(
            numpy_rng(self.seed, "biographies", split, "fillers").integers(_FILLER_WORDS, size=(n, _FILLERS))
        )
        kept = [_present(CUES[task], columns[place]) for place, task in enumerate(CUES) if task != "restricted"]
        words = np.concatenate([column + start for column, start in zip(columns, _starts(), strict=True)], axis=1)
        words = numpy_rng(self.seed, "biographies", split, "order").permuted(words, axis=1)
        if self.pronouns:
            words = self._with_pronouns(split, words, labels["restricted"])
        vocabulary = self.vocabulary()
        texts = [" ".join(vocabulary[word] for word in row) for row in words.tolist()]
        return Labeled(texts, labels, retained=np.concatenate(kept, axis=1) if self.retains else None)

    def classes(self, task: Task) -> int:
        """Professions, genders, regions."""
        return CUES[task].classes

    def vocabulary(self) -> tuple[str, ...]:
        """Every word of the world, the pronouns last, whether or not they are used."""
        return (*_words(), *PRONOUNS)

    def fingerprint(self) -> str:
        """Version of what this file makes."""
        return f"biographies-{VERSION}"

    def check(self) -> None:
        """Nothing can be missing."""

    def _cues(self, split: Split, task: Task, labels: np.ndarray) -> np.ndarray:
        """Places [N, count] in the attribute's list of words, which is ordered by class."""
        cues, rng = CUES[task], numpy_rng(self.seed, "biographies", split, task, "cues")
        shape = (len(labels), cues.count)
        wrong = rng.random(shape) >= cues.right
        shift = wrong * rng.integers(1, cues.classes, size=shape)
        return (labels[:, None] + shift) % cues.classes * cues.words + rng.integers(cues.words, size=shape)

    def _with_pronouns(self, split: Split, words: np.ndarray, gender: np.ndarray) -> np.ndarray:
        """More columns, which stand at random places of each row; the other words keep their order."""
        import numpy as np

        n, width = words.shape
        rng = numpy_rng(self.seed, "biographies", split, "pronouns")
        taken = rng.random((n, width + _TIMES)).argsort(axis=1) < _TIMES
        longer = np.zeros(taken.shape, dtype=words.dtype)
        longer[taken] = len(_words()) + gender.repeat(_TIMES)
        longer[~taken] = words.ravel()
        return longer


def _present(cues: Cues, column: np.ndarray) -> np.ndarray:
    """Whether a word of each class is among a text's cues [N, classes], float32."""
    import numpy as np

    return (column[..., None] // cues.words == np.arange(cues.classes)).any(1).astype(np.float32)


def _starts() -> list[int]:
    """Where the words of each attribute, in the order of `CUES`, and the fillers begin in the vocabulary."""
    starts = [0]
    for cues in CUES.values():
        starts.append(starts[-1] + cues.classes * cues.words)
    return starts


@cache
def _words() -> tuple[str, ...]:
    """As many made-up words of three open syllables as the attributes and the fillers need."""
    syllables = ["".join(pair) for pair in product("bdflmnrtvz", "aeiou")]
    pool = ["".join(triple) for triple in product(syllables, repeat=3)]
    order = numpy_rng(0, "biographies", "words").permutation(len(pool))
    return tuple(pool[i] for i in order[: _starts()[-1] + _FILLER_WORDS])
