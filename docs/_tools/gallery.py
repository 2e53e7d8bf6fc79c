"""Writes docs/recipes.md: every bundled recipe with what it asks, in its own words.

`python docs/_tools/gallery.py`; tests/test_docs.py fails while the page is not what this writes.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from inoculate.experiments.recipe import bundled

PAGE = Path(__file__).parent.parent / "recipes.md"
_HEAD = """\
# Recipes

What `inoculate run` knows by name. Each is a YAML file in `src/inoculate/recipes/`; your own begins with
`extends: NAME` and says only what differs. `inoculate run NAME --dry-run` says how many stages there are,
`inoculate plan NAME` what they cost, `--set a.b=value` changes one field. Recipes under `paper/` need a GPU and the
papers' data.

This page is made of the recipes' own words by `docs/_tools/gallery.py`.
"""
_GROUPS = {
    "": "To begin with",
    "attack": "Attackers who search",
    "booster": "Booster, Vaccine, RepNoise",
    "mlac": "MLAC",
    "paper": "The papers' own settings",
    "security-vectors": "Security Vectors and Lisa",
}
_PICTURES = {
    "quickstart": ("quickstart.svg", "harmful score over attack steps by phrase rules, SFT and Booster, two seeds"),
    "mlac/few-shot": ("mlac-few-shot.svg", "accuracy after a search over fine-tunings on n samples, five seeds"),
    "security-vectors/100-vs-1000": (
        "security-vectors.svg",
        "harmful score of the served model with and without a vector, by Adam's ε, five seeds",
    ),
    "mlac": ("mlac-memory.svg", "memory of one meta-step over K (`benchmarks/mlac_step.py --memory`)"),
}
"""Recipe or group → a chart in docs/pictures, which `inoculate report` drew but for the last, and what it shows."""


def _picture(key: str) -> str:
    if key not in _PICTURES:
        return ""
    file, text = _PICTURES[key]
    caption = text[0].upper() + text[1:]
    return f"\n![{caption}](pictures/{file})\n\n{caption}.\n"


def _entry(name: str, raw: dict[str, str]) -> str:
    said = [" ".join(str(raw[key]).split()) for key in ("question", "description") if raw.get(key)]
    collected = [f"- `{member}`" for member in raw.get("collects", ())]
    parts = [f"### {raw['title']}", f"`inoculate run {name}`", *said, "\n".join(collected)]
    return "\n\n".join(filter(None, parts)) + "\n" + _picture(name)


def gallery() -> str:
    """The page."""
    files = sorted(bundled().items(), key=lambda item: item[0] != "quickstart")  # the smallest first
    recipes = {name: yaml.safe_load(path.read_text(encoding="utf-8")) for name, path in files}
    parts = [_HEAD]
    for group, title in _GROUPS.items():
        inside = {name: raw for name, raw in recipes.items() if name.rpartition("/")[0] == group}
        parts.append(f"## {title}\n" + _picture(group))
        parts += [_entry(name, raw) for name, raw in inside.items()]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(gallery(), encoding="utf-8")
