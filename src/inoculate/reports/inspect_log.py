"""Responses and verdicts as Inspect's eval logs: JSON, format version 2 of inspect_ai's `EvalLog`.

One log for each state of a model that a stage measured (a step of an attack, a re-run of a search): a log is of one
model. `inspect view --log-dir DIR` shows them; nothing of inspect_ai is needed to write them.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from inoculate.core.errors import InputError
from inoculate.core.hashing import digest
from inoculate.core.records import Record
from inoculate.reports.store_view import StageView, StoreView

VERSION = 2
"""Of the log's format."""
_WHOLE = "model"
"""The scorer of rows that no judge gave: losses, task accuracy."""
_ABOUT = ("base", "base_seed", "defense", "defense_params", "defense_seed", "threat_model", "guard", "attack")
State: TypeAlias = tuple[int | None, int]
"""A search's re-run, None elsewhere; and the attack's step."""


def write_logs(view: StoreView, folder: Path) -> list[Path]:
    """Write the logs of all finished stages that kept responses into a new folder.

    Raises:
        InputError: the folder exists, cannot be made, or there is no response in the store.
    """
    logs = dict(_logs(view))
    if not logs:
        raise InputError("no responses in this store", file=view.path, expected="an evaluation or an attack")
    if folder.exists():
        raise InputError("exists already", file=folder, field="--inspect", expected="a new folder")
    fresh = folder.with_name(f".{folder.name}.work")  # so that a run which is cut off leaves nothing that looks done
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for name, log in logs.items():
            (fresh / f"{name}.json").write_text(json.dumps(log, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        fresh.rename(folder)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        why = f"cannot be made: {error.strerror}"
        raise InputError(why, file=folder, field="--inspect", expected="a new folder") from None
    return [folder / f"{name}.json" for name in logs]


def _logs(view: StoreView) -> Iterator[tuple[str, dict[str, Any]]]:
    for stage in view.stages:
        if stage.about is None:
            continue
        states: dict[State, list[dict[str, Any]]] = defaultdict(list)
        for row in view.responses(stage.folder):
            states[row.get("attack_seed"), row.get("step") or 0].append(row)
        for (again, step), said in states.items():
            rows = [row for row in view.records if row.stage == stage.folder and _is_of(row, again, step)]
            part = "" if again is None else f"-rerun{again}"
            log = _log(stage, (again, step), said, rows)
            # Inspect lists a log by its name alone: time, task and id, with _ between them
            when = log["eval"]["created"].replace(":", "-")
            yield f"{when}_{stage.folder}{part}-step{step}_{log['eval']['eval_id']}", log


def _started(about: Mapping[str, Any]) -> str:
    """When a stage began, ISO 8601; the beginning of time if its file does not say."""
    try:
        return datetime.fromisoformat(str(about.get("started"))).isoformat(timespec="seconds")
    except ValueError:
        return "1970-01-01T00:00:00+00:00"


def _is_of(row: Record, again: int | None, step: int) -> bool:
    """Whether a row was measured where these responses were given."""
    if row.value is None or (row.step or 0) != step or row.layer not in ("", "all"):
        return False
    return again is None or (row.attack == "chosen" and row.attack_seed == again)


def _log(stage: StageView, state: State, said: Sequence[Mapping[str, Any]], rows: Sequence[Record]) -> dict[str, Any]:
    about, first = stage.about or {}, rows[0] if rows else None
    started = _started(about)
    model = first.base if first is not None and first.base else stage.label
    samples = [_sample(f"{row.get('set')}-{number}", row, model) for number, row in enumerate(said)]
    told = {} if first is None else {name: value for name, value in asdict(first).items() if name in _ABOUT}
    name = digest([stage.folder, *state], 22)
    return {
        "version": VERSION,
        "status": "success",
        "eval": {
            "eval_id": name,
            "run_id": stage.folder,
            "created": started,
            "task": f"inoculate/{stage.kind}",
            "task_id": stage.folder,
            "dataset": {
                "name": ", ".join(sorted({str(row.get("set")) for row in said})),
                "samples": len(samples),
                "sample_ids": [sample["id"] for sample in samples],
                "shuffled": False,
            },
            "model": model,
            "config": {"epochs": 1},
            "packages": {"inoculate": str(dict(about.get("environment", {})).get("inoculate", version("inoculate")))},
            "metadata": {**told, "label": stage.label, "attack_seed": state[0], "step": state[1]},
        },
        "plan": {"name": "plan", "steps": [], "config": {}},
        "results": {
            "total_samples": len(samples),
            "completed_samples": len(samples),
            "scores": list(_scores(rows)),
        },
        "stats": {"started_at": started, "completed_at": "", "model_usage": {}},
        "samples": samples,
    }


def _scores(rows: Sequence[Record]) -> Iterator[dict[str, Any]]:
    """What each judge's verdicts come to, as it stands in the records."""
    for judge in dict.fromkeys(row.judge for row in rows):
        own = [row for row in rows if row.judge == judge]
        metrics = {row.metric: {"name": row.metric, "value": row.value, "params": {"n": row.n}} for row in own}
        yield {"name": judge or _WHOLE, "scorer": judge or _WHOLE, "params": {}, "metrics": metrics}


def _sample(name: str, row: Mapping[str, Any], model: str) -> dict[str, Any]:
    response = str(row.get("response", ""))
    scores = {
        str(judge): {"value": str(verdict), "answer": response}
        for judge, verdict in (row.get("verdicts") or {}).items()
    }
    if row.get("outcome") is not None:
        scores["task"] = {"value": str(row["outcome"]), "answer": response}
    return {
        "id": name,
        "epoch": 1,
        "input": str(row.get("prompt", "")),
        "target": "",
        "messages": [
            {"role": "user", "content": str(row.get("prompt", ""))},
            {"role": "assistant", "content": response, "source": "generate", "model": model},
        ],
        "output": {
            "model": model,
            "choices": [
                {
                    "message": {"role": "assistant", "content": response, "source": "generate", "model": model},
                    "stop_reason": "unknown",
                }
            ],
            "completion": response,
        },
        "scores": scores,
        "metadata": {key: row[key] for key in ("set", "split", "step", "attack_seed") if key in row},
        "store": {},
        "events": [],
        "model_usage": {},
    }
