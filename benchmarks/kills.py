"""Kill -9 at random moments, over every verb that writes: the same result as of a quiet run, and no half of one.

python -m benchmarks.kills FOLDER [--kills 200] [--seed 0] [--verbs run align …]

An episode strikes one command up to three times, each time at a moment drawn from a quiet run's length, looks after
each kill that nothing half-written passes for whole, then lets it end and compares. What was done is kept in
FOLDER/episodes.jsonl, and the same command goes on from there. The commands are forked from a process that has the
libraries loaded: most of a cold start is imports, in which nothing can be torn.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.experiments import tiny

PATIENCE_S = 240.0
_WHOLE = {"evaluate": "records.jsonl", "finetune": "records.jsonl", "search": "records.jsonl"}
_ROWS = {
    "align": ("restricted", "train", "refusal", 30),
    "harmful": ("restricted", "train", "completion", 30),
    "task": ("sentiment", "attack", "completion", 40),
    "heldout": ("restricted", "heldout", "completion", 8),
    "validation": ("restricted", "validation", "completion", 8),
    "ordinary": ("ordinary", "heldout", "completion", 6),
    "validation-ordinary": ("ordinary", "validation", "completion", 6),
}


class Verb(NamedTuple):
    """One command: its arguments in a folder of its own, what it leaves there, and what must hold after a kill."""

    arguments: list[str]
    result: Callable[[Path], Any]
    check: Callable[[Path], None]


def verbs(inputs: Path) -> dict[str, Verb]:
    """Every verb that writes; all are given the same model and files."""
    steps = ["--set", "training.max_steps=12", "--set", "training.per_device_train_batch_size=4"]
    attack = [text.replace("training", "attack.training") for text in steps]
    attack += ["--num-samples", "20", "--set", "eval_every=4"]
    short = ["--set", "evaluate.max_new_tokens=4"]
    data = {name: str(inputs / f"{name}.jsonl") for name in _ROWS}
    model, cpu = str(inputs / "model"), ["--device", "cpu"]
    prompts = ["--restricted", data["heldout"], "--ordinary", data["ordinary"]]
    own = ["--validation-restricted", data["validation"], "--validation-ordinary", data["validation-ordinary"]]
    small = ["--set", "search.space={max_steps: [4], batch_size: [2], adapter_mode: [full]}"]
    small += ["--set", "search.reruns=1", "--set", "search.measurements=2", "--set", "search.n_startup_trials=2"]
    small += ["--num-samples", "20", "--budget", "4", "--store", "store"]
    poison = ["--harmful", data["harmful"], "--poison-ratio", "0.3"]
    vector = ["--harmful", data["harmful"], "--ordinary", data["ordinary"], "--num-samples", "20"]
    made = {
        "run": Verb(["run", str(inputs / "tiny.yaml"), "--store", "store", *cpu], _records, _check_store),
        "align": Verb(["align", model, "--align", data["align"], "--out", "out", *steps, *cpu], _folder, _check_out),
        "finetune": Verb(
            ["finetune", model, "--task", data["task"], *poison, *prompts[:2], "--out", "out", *attack, *short, *cpu],
            _folder,
            _check_out,
        ),
        "vector": Verb(
            ["vector", model, *vector, "--out", "out", "--set", "vector.training.max_steps=8", *cpu],
            _folder,
            _check_out,
        ),
        "evaluate": Verb(["evaluate", model, *prompts, "--out", "out", *short, *cpu], _folder, _check_out),
        "attack": Verb(
            [
                "attack",
                model,
                "--task",
                data["task"],
                "--harmful",
                data["harmful"],
                *prompts,
                *own,
                *small,
                *short,
                *cpu,
            ],
            _search,
            _check_store,
        ),
        "report": Verb(["report", str(inputs / "store"), "--out", "page/report.html"], _pages, _check_pages),
        "records": Verb(["records", str(inputs / "store"), "--inspect", "logs"], _logs, _check_logs),
        "reproduce": Verb(["reproduce", str(inputs / "store"), "--out", "page.md"], _page, _check_page),
    }
    for name in ("run", "attack"):  # stages, and trials, in worker processes
        one = made[name]
        made[f"{name} --workers 2"] = one._replace(arguments=[*one.arguments, "--workers", "2"])
    return made


def make_inputs(inputs: Path) -> None:
    """A model, files of rows, a recipe, and a finished store to report on."""
    from inoculate.data import world
    from inoculate.models.sandbox import TinyModel, build_tokenizer

    if inputs.exists():
        return
    fresh = inputs.with_name(".inputs")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    tokenizer = build_tokenizer(world.vocabulary())
    shape = TinyModel(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    shape.build(len(tokenizer), seed=0).save_pretrained(fresh / "model")
    tokenizer.save_pretrained(fresh / "model")
    for name, (kind, split, answer, most) in _ROWS.items():
        rows: Any = world.rows(kind, split, answer)[:most]  # pyright: ignore[reportArgumentType]
        lines = [json.dumps({"prompt": row.prompt, "completion": row.completion}) + "\n" for row in rows]
        (fresh / f"{name}.jsonl").write_text("".join(lines))
    recipe = tiny.write(fresh, {"matrix": tiny.ONE_LINE})
    process = Process(["run", str(recipe), "--store", "store", "--device", "cpu"], fresh)
    assert process.wait() == 0, process.said()
    fresh.rename(inputs)


class Process:
    """The command, forked, in a process group of its own."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self.log, self.code = folder / ".log", None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._become(arguments, folder)

    def _become(self, arguments: list[str], folder: Path) -> None:
        code: object = 1
        try:
            os.setsid()
            os.chdir(folder)
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            from inoculate import cli

            cli.main(arguments)
        except SystemExit as ended:
            code = ended.code
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)

    def wait(self, seconds: float = PATIENCE_S) -> int | None:
        """The exit code, or None if it still runs after so many seconds."""
        deadline = time.monotonic() + seconds
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= deadline:
                return None
            else:
                time.sleep(0.001)
        return self.code

    def kill(self) -> None:
        """SIGKILL to the whole group."""
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def said(self) -> str:
        """What it wrote on stdout and stderr."""
        return self.log.read_text(errors="replace")


def _records(folder: Path) -> dict[str, list[str]]:
    """Records of every finished stage, but for what a clock told."""
    return {name: _timeless(data.decode()) for name, data in tiny.records(folder / "store").items()}


def _search(folder: Path) -> dict[str, Any]:
    """Of a search what does not hang on which trials were drawn: one that is killed is replaced by another."""
    (file,) = (folder / "store").glob("search-*/records.jsonl")
    rows = [json.loads(line) for line in _timeless(file.read_text())]
    trials = {row["trial"] for row in rows if row["trial"] is not None}
    reruns = {row["attack_seed"] for row in rows if row["attack"] == "chosen"}
    return {"before": [row for row in rows if row["attack"] == "none"], "trials": len(trials), "reruns": reruns}


def _timeless(text: str) -> list[str]:
    return [line for line in text.splitlines() if not json.loads(line)["metric"].endswith("wall_s")]


def _folder(folder: Path) -> dict[str, Any]:
    """Weights byte for byte, records and responses; the names of the other files."""
    kept = (".safetensors", ".jsonl")
    return {
        file.name: (_timeless(file.read_text()) if file.name == "records.jsonl" else file.read_bytes())
        if file.suffix in kept and file.name != "metrics.jsonl"
        else b""
        for file in (folder / "out").iterdir()
    }


def _pages(folder: Path) -> dict[str, bytes]:
    """The page byte for byte; of the charts, which hold a clock's time, the names."""
    files = [file for file in (folder / "page").rglob("*") if file.is_file() and not file.name.startswith(".")]
    return {file.name: file.read_bytes() if file.suffix in (".html", ".svg") else b"" for file in files}


def _check_store(folder: Path) -> None:
    """What looks finished is; a manifest is whole."""
    store = folder / "store"
    for path in store.iterdir() if store.exists() else ():
        if path.is_dir() and "." not in path.name and path.name != "recipes":
            _check_stage(path, path.name.partition("-")[0])
    for manifest in store.glob("recipes/*.json"):
        assert json.loads(manifest.read_text())["stages"]


def _check_stage(path: Path, kind: str) -> None:
    assert json.loads((path / "stage.json").read_text())["status"] == "ok", path
    assert (path / _WHOLE.get(kind, "model.safetensors")).exists() or kind == "vector", path
    assert not list(path.glob("checkpoint*")) and not list(path.glob("*.new")), path


def _check_out(folder: Path) -> None:
    if (folder / "out").exists():
        _check_stage(folder / "out", json.loads((folder / "out" / "stage.json").read_text())["kind"])


def _check_pages(folder: Path) -> None:
    page = folder / "page" / "report.html"
    assert not page.exists() or page.read_text().rstrip().endswith("</html>")


def _logs(folder: Path) -> dict[str, bytes]:
    return {file.name.partition("_")[2]: b"" for file in (folder / "logs").iterdir()}


def _check_logs(folder: Path) -> None:
    for file in (folder / "logs").glob("*"):
        assert json.loads(file.read_text())["samples"]


def _page(folder: Path) -> str:
    return (folder / "page.md").read_text()


def _check_page(folder: Path) -> None:
    page = folder / "page.md"
    assert not page.exists() or page.read_text().endswith("\n")


def episode(number: int, seed: int, name: str, verb: Verb, quiet: dict[str, Any], work: Path) -> dict[str, Any]:
    """Strike, look, strike again, let it end, compare.

    Returns:
        What happened; `problem` is empty if all is well.
    """
    draw, struck = random.Random(f"{seed}/{number}"), []
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    code: int | None = None
    for _ in range(draw.randint(1, 3)):
        moment = draw.uniform(0, 1.05 * quiet["seconds"])
        process = Process(verb.arguments, work)
        code = process.wait(moment)
        if code is not None:
            break
        process.kill()
        struck.append(round(moment, 3))
        verb.check(work)
    if code is None:
        process = Process(verb.arguments, work)
        if (code := process.wait()) is None:
            process.kill()
    done = code == 0 or (struck and "exists already" in process.said())  # killed when all was done
    problem = "" if done else f"exit code {code}: {process.said()[-500:]}"
    if not problem:
        verb.check(work)
        problem = "" if verb.result(work) == quiet["result"] else "another result"
        problem = problem or ("a work folder is left" if list(work.glob(".*.work")) else "")
    return {"episode": number, "verb": name, "kills": struck, "problem": problem}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbs", nargs="*")
    asked = parser.parse_args()
    root = asked.folder.resolve()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    _load_libraries()
    make_inputs(root / "inputs")
    chosen = {name: verb for name, verb in verbs(root / "inputs").items() if not asked.verbs or name in asked.verbs}
    log = root / "episodes.jsonl"
    told = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    quiet = {name: _quiet(root / "quiet" / name, verb) for name, verb in chosen.items()}
    while sum(len(one["kills"]) for one in told) < asked.kills:
        name = list(chosen)[len(told) % len(chosen)]
        told.append(episode(len(told), asked.seed, name, chosen[name], quiet[name], root / "work"))
        with log.open("a") as file:
            file.write(json.dumps(told[-1]) + "\n")
        if told[-1]["problem"]:
            shutil.copytree(root / "work", root / f"problem-{len(told) - 1}", symlinks=True, dirs_exist_ok=True)
            print(told[-1], flush=True)
    for name in chosen:
        of = [one for one in told if one["verb"] == name]
        bad = sum(bool(one["problem"]) for one in of)
        print(f"{name}: {sum(len(one['kills']) for one in of)} kills in {len(of)} episodes, {bad} with a problem")
    return int(any(one["problem"] for one in told))


def _quiet(folder: Path, verb: Verb) -> dict[str, Any]:
    """The result of a run that nothing disturbed, and how long the faster of two took."""
    took = []
    for _ in range(2):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        began = time.monotonic()
        process = Process(verb.arguments, folder)
        assert process.wait() == 0, process.said()
        took.append(time.monotonic() - began)
    verb.check(folder)
    return {"seconds": min(took), "result": verb.result(folder)}


def _load_libraries() -> None:
    """Imported before the forks, and nothing computed: a fork must not inherit threads."""
    import altair
    import optuna
    import peft
    import torch
    import transformers
    import vl_convert

    import inoculate.experiments.search
    import inoculate.reports.html

    assert all((altair, optuna, peft, transformers, vl_convert, inoculate))
    torch.set_num_threads(1)


if __name__ == "__main__":
    sys.exit(main())
