"""What a stage asks of a node of a cluster: processors, a GPU, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inoculate.core.errors import InoculateError, InputError
from inoculate.core.hardware import GIB
from inoculate.experiments.plan import cost_key, work_cost
from inoculate.experiments.plan_cost import ALONE, Seen, empty
from inoculate.experiments.plan_task import work_of
from inoculate.experiments.stage import Stage

_PROCESS = GIB
"""Memory of a process before it has a model, bytes."""
Nodes = Sequence[Mapping[str, Any]]


class Needs:
    """The same processors for every stage, and its own memory.

    Args:
        device: `cuda` asks for a GPU, `auto` where there is one.
        nodes: as `ray.nodes` says.
        workers: stages at once, which share the processors; None gives each one processor, or those of its GPU.

    Raises:
        InputError: if no node can take a stage.
    """

    def __init__(self, device: str, nodes: Nodes, workers: int | None) -> None:
        self.gpus = int(device == "cuda" or (device == "auto" and any(_has(node, "GPU") for node in nodes)))
        able = [node for node in nodes if _has(node, "CPU") >= 1 and _has(node, "GPU") >= self.gpus]
        if not able:
            asked = "a processor and a GPU" if self.gpus else "a processor"
            has = {kind: sum(_has(node, kind) for node in nodes) for kind in ("CPU", "GPU")}
            raise InputError("no node can take a stage", field="--on", found=has, expected=f"a node with {asked}")
        if self.gpus:
            share = min(_has(node, "CPU") // _has(node, "GPU") for node in able)
        else:
            share = 1 if workers is None else sum(_has(node, "CPU") for node in able) // workers
        self.cpus = int(max(1, min(share, *(_has(node, "CPU") for node in able))))
        self._most = max(_has(node, "memory") for node in able)
        self._known: dict[str, int] = {}
        self._planned: dict[str, int] = {}
        self._seen: Seen = {}

    def slots(self, nodes: Nodes) -> int:
        """How many stages run at once on these nodes, memory left aside."""
        return sum(self._on(node) for node in nodes)

    def of(self, stage: Stage) -> dict[str, float]:
        """Options of the stage's task; memory in bytes, and not asked for where no plan tells it."""
        if stage.folder not in self._known:
            self._known[stage.folder] = self._memory(stage)
        memory = min(self._known[stage.folder], self._most)  # more than any node has would wait for ever
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, **({"memory": int(memory)} if memory else {})}

    def _on(self, node: Mapping[str, Any]) -> int:
        cpus, gpus = int(_has(node, "CPU") // self.cpus), int(_has(node, "GPU"))
        return min(cpus, gpus) if self.gpus else cpus

    def _memory(self, stage: Stage) -> int:
        """Of the node's own memory: weights, which pass through it, where there is a GPU; else the peak of a plan.

        A plan traces steps, which takes seconds for a small model and minutes for a large one: far less than the stage
        will take on processors. Stages that differ in seeds and rates share one.
        """
        from inoculate.models.footprint import held_bytes

        try:
            work = work_of(stage)
            key = cost_key(work)
            if key not in self._planned:
                if self.gpus:
                    held = max(held_bytes(empty(task).parameters()) for task in work.tasks())
                else:
                    held = work_cost(work, ALONE, self._seen).peak_bytes
                self._planned[key] = _PROCESS + held
        except (InoculateError, RuntimeError, OSError, TypeError, ValueError):
            return 0  # no stage of a line; or something is wrong, which it says better itself
        return self._planned[key]


def _has(node: Mapping[str, Any], kind: str) -> float:
    return node["Resources"].get(kind, 0.0)
