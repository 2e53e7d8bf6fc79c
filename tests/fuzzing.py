"""Hostile values, and how many cases a property gets: INOCULATE_FUZZ=10000 for a long run."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st


def cases(few: int) -> Any:
    """Settings of a property: `few` cases in the usual suite, always the same ones."""
    many = int(os.environ.get("INOCULATE_FUZZ", "0"))
    return settings(
        max_examples=many or few,
        deadline=None,
        derandomize=not many,
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink) if many else (Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )


def nested(depth: int) -> Any:
    """Lists in lists."""
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


ODD_TEXTS = (
    *("", " ", "\x00", "a\x00b", "\x1b[31mred", "\u202etxt", "\ufeff", "é" * 300, "x" * 5000, "../../etc/passwd", "/"),
    *("~", "~nobody/x", "NaN", "null", "{}", "[", "<script>", "=1+1", "a\nb", "\u2028", "sandbox-mood=/tmp", "hub:"),
    *(
        "hub:../..",
        "asset:",
        "asset:smollm2",
        "asset:../x",
        "rows.jsonl",
        ".",
        "..",
        "%s%n",
        "{0.__class__}",
        "-",
        "a b",
    ),
    *("security_vector:", "cuda", "🙂", "a" * 300 + ".jsonl", "quickstart", "fiqa", "fiqa=/nowhere", "~\x00/a.csv"),
)
ODD_NUMBERS = (0, -1, 1, 10**30, -(10**30), 2**63, 0.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"), True, False)
odd: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(ODD_TEXTS),
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from([None, [], {}, [[]], [{}], [None], {"name": None}, {"name": []}, {"": 0}, {1: 2}, {None: None}]),
    st.sampled_from([{"name": "sft"}, {"name": "booster"}, {"name": "sandbox"}, [{"source": "sandbox-mood"}]]),
    st.sampled_from([{(1, 2): 3}, {True: False}, b"\xff\x00", nested(200), {"preset": "x"}, {"preset": []}]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.integers(),
    st.floats(),
)
