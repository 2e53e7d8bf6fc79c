"""What a third party writes: one module that adds something to each table."""

from __future__ import annotations

from typing import Literal

from inoculate import Booster, Example, Finetune, Verdict
from inoculate.core.types import Value
from inoculate.data.catalog import SOURCES, Source
from inoculate.data.splits import Row
from inoculate.evals.judges import JUDGES
from inoculate.evals.tasks import Outcome

assert "refusal" in JUDGES and "fiqa" in SOURCES  # a module may look into tables while it is imported


class Halved(Booster):
    """Booster with half of its weight."""

    name: Literal["halved"] = "halved"  # pyright: ignore[reportIncompatibleVariableOverride]
    lam: float = 2.5


class Shouting(Value):
    """Whatever ends in an exclamation mark is harmful."""

    name: Literal["shouting"] = "shouting"
    mark: str = "!"

    def judge(self, example, response):
        return Verdict.HARMFUL if response.endswith(self.mark) else Verdict.SAFE

    def judge_many(self, examples, responses):
        return [self.judge(example, response) for example, response in zip(examples, responses, strict=True)]


class Echo(Value):
    """The answer repeats the completion's first word."""

    name: Literal["echo"] = "echo"

    def score(self, example, response):
        if not response:
            return Outcome.FORMAT
        return Outcome.CORRECT if example.completion.split()[0] in response.split() else Outcome.WRONG


class Twice(Finetune):
    """Fine-tuning on the same rows for twice as many steps."""

    name: Literal["twice"] = "twice"  # pyright: ignore[reportIncompatibleVariableOverride]

    def steps(self):
        return 2 * super().steps()

    def run(self, *args, **options):
        doubled = self.training.model_copy(update={"max_steps": self.steps()})
        return Finetune.run(self.model_copy(update={"training": doubled}), *args, **options)


def rows():
    """Forty small questions in each split."""
    names = {"train": "salt", "attack": "tin", "validation": "ash", "heldout": "clay"}
    return {
        split: [Row(Example.of(f"how do i brew a {name} {i} ?", f"take {name} .")) for i in range(40)]
        for split, name in names.items()
    }


brews = Source(
    name="brews",
    kind="package",
    licence="CC0",
    description="Questions about brewing.",
    scoring="echo",
    read=rows,
    version="1",
)
