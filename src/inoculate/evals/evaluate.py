"""What is measured on a model: restricted requests, ordinary ones, and the user's task, always together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import PositiveInt, SerializerFunctionWrapHandler, model_serializer, model_validator

from inoculate.core.errors import InputError
from inoculate.core.types import Example, Value, Verdict
from inoculate.data import sources
from inoculate.data.batches import pad
from inoculate.data.mix import Part
from inoculate.data.templates import Encoded, Template, encode, prompt_ids
from inoculate.evals.judges import JudgeConfig, ReferenceJudge, RefusalJudge
from inoculate.evals.served import Served
from inoculate.evals.tasks import Outcome, Task, TaskConfig, task_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RATES = {
    Verdict.HARMFUL: "harmful_score",
    Verdict.REFUSAL: "refusal_rate",
    Verdict.INCOHERENT: "incoherent_rate",
    Verdict.SAFE: "safe_rate",
    Verdict.UNPARSABLE: "unparsable_rate",
}


class Measured(NamedTuple):
    """`rows`: metric, value, n, judge, split. `responses`: what the model said, with verdict or outcome."""

    rows: list[dict[str, Any]]
    responses: list[dict[str, Any]]


class Evaluation(Value):
    """Which prompts, which judges, how long an answer."""

    restricted: Part | None = None
    """Requests whose fulfilment is harm (or stands in for it); their completions give `harmful_loss_test`."""
    ordinary: Part | None = None
    """Requests that should be answered; refusing them is over-refusal."""
    task: Part | None = None
    """The user's task, from a source with labels or numbers, or scored by `scoring`."""
    scoring: TaskConfig | None = None
    """How the task's answers are scored; null is as its source says. Needed for a file, which says nothing."""
    judges: tuple[JudgeConfig, ...] = (RefusalJudge(),)
    template: Template = "chat"
    max_length: PositiveInt = 256
    max_new_tokens: PositiveInt = 64
    task_max_new_tokens: PositiveInt = 16
    batch_size: PositiveInt = 64

    @model_validator(mode="after")
    def _judges_differ(self) -> Evaluation:
        names = [judge.name for judge in self.judges]
        if len(set(names)) < len(names):
            raise ValueError(f"judges: one of each kind at most, since rows tell them apart by name (found {names})")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `scoring` where there is none: it came after results had been stored under the hash of the rest."""
        fields = serialize(self)
        if self.scoring is None:
            fields.pop("scoring", None)
        return fields

    def parts(self) -> list[Part]:
        """The prompts that are measured on."""
        return [part for part in (self.restricted, self.ordinary, self.task) if part is not None]

    def tells(self, metric: str) -> bool:
        """Whether what is measured includes what a utility is made of: a task, or ordinary prompts and their judges."""
        if metric == "finetune_accuracy":
            return self.task is not None
        by_content = any(isinstance(judge, ReferenceJudge) for judge in self.judges)
        return self.ordinary is not None and (by_content or metric != "ordinary_accuracy")

    def check(self) -> None:
        """Refuse prompts that cannot be loaded (see `Part.check`) or scored.

        Raises:
            InputError: naming the source.
        """
        for part in self.parts():
            part.check()
        if self.task is not None:
            self.scored_by(self.task)

    def scored_by(self, part: Part) -> Task:
        """What scores the answers to a task.

        Raises:
            InputError: naming the source, if neither it nor `scoring` says.
        """
        scoring = sources.scoring_of(part.source)
        if self.scoring is not None:
            return self.scoring
        if scoring is None:
            expected = "a source with labels or numbers, or evaluate.scoring, as in {name: number}"
            raise InputError(
                "answers of this source cannot be scored", field="evaluate.task", found=part.source, expected=expected
            )
        return task_for(scoring, sources.labels_of(part.source))

    def prepare(self, tokenizer: PreTrainedTokenizerBase | None) -> Evaluator:
        """Load and render all prompts once, to be measured many times; without a tokenizer on models that are served
        alone."""
        return Evaluator(self, tokenizer)


class Evaluator:
    """An evaluation with its prompts rendered by one tokenizer, or by the server of a model."""

    def __init__(self, evaluation: Evaluation, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self.evaluation, self.tokenizer = evaluation, tokenizer
        self._sets: dict[str, tuple[Part, list[Example], list[list[int]]]] = {}
        for name in ("restricted", "ordinary", "task"):
            part: Part | None = getattr(evaluation, name)
            if part is not None:
                examples = part.load(seed=0)
                ids = [] if tokenizer is None else prompt_ids(tokenizer, examples, evaluation.template)
                self._sets[name] = (part, examples, ids)
        self._harmful: list[Encoded] = []
        if "restricted" in self._sets and tokenizer is not None:
            self._harmful = encode(tokenizer, self._sets["restricted"][1], evaluation.template, evaluation.max_length)

    def measure(self, model: PreTrainedModel | Served) -> Measured:
        """Generate greedily, judge every response, and take the loss on the restricted completions, if there are
        weights to take it on."""
        measured = Measured([], [])
        for name in self._sets:
            getattr(self, f"_{name}")(model, measured)
        return measured

    def _restricted(self, model: PreTrainedModel | Served, into: Measured) -> None:
        part, examples, responses = self._respond(model, "restricted", self.evaluation.max_new_tokens)
        verdicts = {judge.name: judge.judge_many(examples, responses) for judge in self.evaluation.judges}
        for judge, given in verdicts.items():
            counts = Counter(given)
            n = len(given)
            into.rows.extend(_row(metric, counts[said] / n, n, part.split, judge) for said, metric in RATES.items())
        if not isinstance(model, Served):
            into.rows.append(_row("harmful_loss_test", self._harmful_loss(model), len(self._harmful), part.split))
        into.responses.extend(_said("restricted", part, examples, responses, verdicts))

    def _ordinary(self, model: PreTrainedModel | Served, into: Measured) -> None:
        part, examples, responses = self._respond(model, "ordinary", self.evaluation.max_new_tokens)
        judge = next((j for j in self.evaluation.judges if isinstance(j, RefusalJudge)), RefusalJudge())
        verdicts = judge.judge_many(examples, responses)
        counts, n = Counter(verdicts), len(verdicts)
        into.rows.append(_row("over_refusal_rate", counts[Verdict.REFUSAL] / n, n, part.split, judge.name))
        into.rows.append(_row("ordinary_incoherent_rate", counts[Verdict.INCOHERENT] / n, n, part.split, judge.name))
        for reference in (judge for judge in self.evaluation.judges if isinstance(judge, ReferenceJudge)):
            met = reference.judge_many(examples, responses).count(Verdict.HARMFUL)  # it says: the request was met
            into.rows.append(_row("ordinary_accuracy", met / n, n, part.split, reference.name))
        into.responses.extend(_said("ordinary", part, examples, responses, {judge.name: verdicts}))

    def _task(self, model: PreTrainedModel | Served, into: Measured) -> None:
        part, examples, responses = self._respond(model, "task", self.evaluation.task_max_new_tokens)
        task = self.evaluation.scored_by(part)
        outcomes = [task.score(example, response) for example, response in zip(examples, responses, strict=True)]
        counts, n = Counter(outcomes), len(outcomes)
        into.rows.append(_row("finetune_accuracy", counts[Outcome.CORRECT] / n, n, part.split))
        into.rows.append(_row("format_failure_rate", counts[Outcome.FORMAT] / n, n, part.split))
        said = _said("task", part, examples, responses, {})
        into.responses.extend({**row, "outcome": outcome} for row, outcome in zip(said, outcomes, strict=True))

    def _respond(
        self, model: PreTrainedModel | Served, name: str, max_new_tokens: int
    ) -> tuple[Part, list[Example], list[str]]:
        part, examples, ids = self._sets[name]
        if isinstance(model, Served):
            return part, examples, model.generate(examples, self.evaluation.template, max_new_tokens)
        from inoculate.evals.generate import generate

        assert self.tokenizer is not None  # of a model with weights
        batch_size = self.evaluation.batch_size
        texts = generate(model, self.tokenizer, ids, max_new_tokens=max_new_tokens, batch_size=batch_size)
        return part, examples, texts

    def _harmful_loss(self, model: PreTrainedModel) -> float:
        """Mean over all answer tokens, padding and prompts left out."""
        import torch

        from inoculate.models.loss import device_of, loss_of

        total = tokens = 0.0
        rows = sorted(self._harmful, key=lambda row: len(row.ids))
        for start in range(0, len(rows), self.evaluation.batch_size):
            part = rows[start : start + self.evaluation.batch_size]
            batch = {name: tensor.to(device_of(model)) for name, tensor in pad(part, 0).items()}
            count = sum(len(row.ids) - row.n_prompt for row in part)
            with torch.no_grad():
                total += loss_of(model, batch).item() * count
            tokens += count
        return total / tokens


def _row(metric: str, value: float, n: int, split: str, judge: str = "") -> dict[str, Any]:
    return {"metric": metric, "value": value, "n": n, "judge": judge, "split": split}


def _said(
    name: str, part: Part, examples: Sequence[Example], responses: Sequence[str], verdicts: dict[str, list[Verdict]]
) -> list[dict[str, Any]]:
    return [
        {
            "set": name,
            "split": part.split,
            "prompt": example.prompt,
            "response": response,
            "verdicts": {judge: given[i] for judge, given in verdicts.items()},
            "outcome": None,
        }
        for i, (example, response) in enumerate(zip(examples, responses, strict=True))
    ]
