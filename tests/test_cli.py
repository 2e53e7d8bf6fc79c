"""The command: exit codes, the one message for each mistake, and what the verbs print."""

from __future__ import annotations

import csv
import inspect
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml

from inoculate import cli
from inoculate.core.errors import PlugInWarning
from inoculate.core.records import COLUMNS
from inoculate.data import world
from inoculate.data.world_table import WORLDS
from inoculate.defenses import DEFENSES
from inoculate.evals.judges import JUDGES
from inoculate.experiments.recipe import bundled, load_recipe, load_recipes
from inoculate.models.sandbox import TinyModel, build_tokenizer
from tests.experiments import tiny


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """Runs the command in a folder of its own: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """A model and data, and the same with one fault each."""
    tmp_path = tmp_path_factory.mktemp("faulty")
    tokenizer = build_tokenizer(world.vocabulary())
    shape = TinyModel(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
    for name in ("model", "cut", "pickled", "speechless"):
        model = shape.build(len(tokenizer), seed=0)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "speechless" / "chat_template.jinja").unlink()
    rows = [json.dumps({"prompt": f"how do i brew a {i} ?", "completion": "take salt ."}) for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    (tmp_path / "column.jsonl").write_text("\n".join([*rows[:9], '{"prompt": "a", "completions": "b"}']))
    (tmp_path / "torn.jsonl").write_text("\n".join([*rows[:9], '{"prompt": "a", "comp']))
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}')
    (tmp_path / "file").write_text("")
    (tmp_path / "there").mkdir()
    return tmp_path


@pytest.fixture
def files(faulty, tmp_path):
    """The test's own copy, in its working directory."""
    return Path(shutil.copytree(faulty, tmp_path, dirs_exist_ok=True))


ALIGN = ["align", "model", "--out", "new", "--align"]
FINETUNE = ["finetune", "model", "--task", "rows.jsonl", "--num-samples", "20", "--out", "new"]
EVALUATE = ["evaluate", "model", "--restricted", "rows.jsonl", "--out", "new"]
WRONG = {
    "a missing file": ([*ALIGN, "row.jsonl"], "data: no such file (found 'row.jsonl'). Did you mean 'rows.jsonl'?"),
    "a missing column": (
        [*ALIGN, "column.jsonl"],
        "column.jsonl: line 10: column 'completion' is missing; 'completions' may be meant (found 'prompt, completions', "
        "expected columns `prompt` and `completion`, or `messages`)",
    ),
    "a torn line": ([*ALIGN, "torn.jsonl"], "torn.jsonl: line 10: invalid JSON"),
    "an empty file": ([*ALIGN, "empty.jsonl"], "empty.jsonl: the file has no rows"),
    "an unknown source": ([*ALIGN, "sandbox-restrict"], "data: no such data (found 'sandbox-restrict'"),
    "a folder as data": ([*ALIGN, "there"], "data: a folder is not a data file (found 'there'"),
    "no harmful data": ([*ALIGN, "rows.jsonl", "--defense", "booster"], "booster needs data for the role 'harmful'"),
    "an unknown defense": (
        [*ALIGN, "rows.jsonl", "--defense", "boster"],
        "defense.name: unknown name (found 'boster', expected one of sft, booster, vaccine, repnoise, mlac, adversarial, together). Did you mean 'booster'?",
    ),
    "an unknown hyperparameter": (
        [*ALIGN, "rows.jsonl", "--set", "defense.lam=1"],
        "defense.lam: unknown field (found 'lam')",
    ),
    "an unknown LoRA target": (
        [*ALIGN, "rows.jsonl", "--set", "lora.target_modules=[q_prj]"],
        "lora.target_modules: the model has no such module (found 'q_prj'). Did you mean 'q_proj'?",
    ),
    "set without =": (
        [*ALIGN, "rows.jsonl", "--set", "training"],
        "--set: not of the form a.b.c=value (found 'training')",
    ),
    "an unknown device": (
        [*ALIGN, "rows.jsonl", "--device", "gpu"],
        "--device: no such device (found 'gpu', expected auto, cpu, cuda, mps). Did you mean 'cpu'?",
    ),
    "an output that exists": (
        ["align", "model", "--align", "rows.jsonl", "--out", "there"],
        "there: --out: exists already (expected a new folder)",
    ),
    "an output under a file": (
        ["align", "model", "--align", "rows.jsonl", "--out", "file/new"],
        "file/.new.work: --out: the folder cannot be written: Not a directory",
    ),
    "pickled weights": (
        ["align", "pickled", "--align", "rows.jsonl", "--out", "new"],
        "pickled: the weights are pickled, and loading a pickle can run its author's code",
    ),
    "truncated weights": (
        ["evaluate", "cut", "--restricted", "rows.jsonl", "--out", "new"],
        "cut/model.safetensors: the weight file is damaged or cut off",
    ),
    "no such model": (
        ["evaluate", "./modle", "--restricted", "rows.jsonl", "--out", "new"],
        "model: no such model (found './modle'",
    ),
    "a model of nobody": (
        ["evaluate", "asset:smollm", "--restricted", "rows.jsonl", "--out", "new"],
        "model: no such packaged model (found 'asset:smollm', expected asset:smollm2). Did you mean 'asset:smollm2'?",
    ),
    "no chat template": (
        ["align", "speechless", "--align", "rows.jsonl", "--out", "new"],
        "speechless: template: this tokenizer has no chat template (found 'chat', expected `plain` or `alpaca`",
    ),
    "nothing to measure": (
        ["evaluate", "model", "--out", "new"],
        "nothing to measure (expected --restricted, --ordinary, --task or --lm-eval)",
    ),
    "a task that nothing scores": (
        ["evaluate", "model", "--task", "rows.jsonl", "--out", "new"],
        "evaluate.task: answers of this source cannot be scored (found 'rows.jsonl', expected a source with labels or "
        "numbers, or evaluate.scoring, as in {name: number})",
    ),
    "an unknown judge": (
        [*EVALUATE, "--set", "evaluate.judges=[{name: refusl}]"],
        "evaluate.judges.0.name: unknown name (found 'refusl', expected one of refusal, reference, classifier, endpoint). "
        "Did you mean 'refusal'?",
    ),
    "more rows than there are": (
        ["finetune", "model", "--task", "rows.jsonl", "--num-samples", "1000", "--out", "new"],
        "num_samples: too few rows in rows.jsonl, split 'attack' (found '30 of 1000 that are asked for', expected a num_samples that",
    ),
    "prompts that are trained on and measured on": (
        [*FINETUNE, "--restricted", "rows.jsonl"],
        "rows.jsonl: evaluate: 30 of the prompts in what is trained on are among those that are measured on (found 'how do i brew a 0 ?', expected",
    ),
    "a field of another place, deeper": (
        [*FINETUNE, "--set", "learning_rate=1e-3"],
        "learning_rate: unknown field (found 'learning_rate', expected attack.training.learning_rate)",
    ),
    "a field of two other places": (
        [*ALIGN, "rows.jsonl", "--set", "seed=1"],
        "seed: unknown field (found 'seed', expected data.seed or training.seed)",
    ),
    "a field of another place": (
        [*FINETUNE, "--set", "training.max_steps=1"],
        "training: unknown field (found 'training', expected attack.training)",
    ),
    "no rows": ([*FINETUNE[:4], "--num-samples", "0", "--out", "new"], "attack.num_samples: wrong value (found 0"),
    "harmful data without p": (
        [*FINETUNE, "--harmful", "rows.jsonl"],
        "--harmful: these data would not be used (found 'rows.jsonl', expected --poison-ratio above 0",
    ),
    "harmful data for a defense that takes none": (
        [*ALIGN, "rows.jsonl", "--harmful", "rows.jsonl"],
        "--harmful: these data would not be used (found 'sft', expected a defense that learns from harmful data",
    ),
    "a field like no other": (
        [*ALIGN, "rows.jsonl", "--set", "lora.xyz=8"],
        "lora.xyz: unknown field (found 'xyz', expected one of lora_alpha, ",
    ),
    "prompts alone": (
        [*EVALUATE[:2], "--restricted", "prompts.jsonl", "--out", "new"],
        "prompts.jsonl: line 1: column 'completion' is missing (found 'prompt', expected columns",
    ),
    "p without harmful data": ([*FINETUNE, "--poison-ratio", "0.5"], "attack: poison_ratio > 0 needs `harmful` data"),
    "p above 1": (
        [*FINETUNE, "--poison-ratio", "1.5"],
        "attack.poison_ratio: wrong value (found 1.5, expected less than or equal",
    ),
    "no adapter to go on with": (
        [*FINETUNE, "--set", "attack.adapter_mode=continue"],
        "adapter_mode: the model has no adapter to go on with (found 'continue', expected full or merge)",
    ),
    "a guard under open weights": (
        [*FINETUNE, "--guard", "lisa:rows.jsonl", "--threat-model", "open_weights"],
        "threat_model: lisa works inside the provider's training loop, and an attacker who has the weights trains "
        "without it; under open weights it cannot be scored (found 'open_weights', expected service)",
    ),
    "an unknown guard": (
        [*FINETUNE, "--guard", "vector:there"],
        "--guard: not a guard (found 'vector:there', expected security_vector:DIR or lisa:DATA)",
    ),
    "a folder that is no vector": (
        [*FINETUNE, "--guard", "security_vector:there"],
        "there: not a security vector (found 'an empty folder', expected a folder with adapter_config.json)",
    ),
    "a vector without ordinary data": (
        ["vector", "model", "--harmful", "rows.jsonl", "--num-samples", "20", "--out", "new"],
        "vector: a security vector needs data for the role 'ordinary'",
    ),
    "a vector of more rows than there are": (
        [
            "vector",
            "model",
            "--harmful",
            "rows.jsonl",
            "--ordinary",
            "rows.jsonl",
            "--num-samples",
            "100",
            "--out",
            "new",
        ],
        "num_samples: too few rows in rows.jsonl, split 'train' (found '30 of 100 that are asked for', expected a num_samples that",
    ),
    "an unknown option": (
        [*FINETUNE, "--poison-rate", "0"],
        "Unknown option: --poison-rate. Did you mean --poison-ratio?",
    ),
    "an option of the wrong type": (
        ["run", "quickstart", "--workers", "two"],
        "Invalid value for --workers: unable to",
    ),
    "an unknown verb": (["fintune", "model"], 'Unknown command "fintune". Did you mean "finetune"?'),
    "an unknown kind": (["list", "judgs"], 'Invalid value "judgs" for KIND. Choose from: "recipes", "defenses"'),
    "an unknown recipe": (
        ["run", "quickstrat"],
        "RECIPE: no such recipe, and no such file (found 'quickstrat'). Did you mean 'quickstart'?",
    ),
    "no worker": (["run", "quickstart", "--workers", "0"], "--workers: at least one process is needed (found 0)"),
    "a swept key": (
        ["run", "quickstart", "--set", "align.defense.lam=1"],
        "--set: align.defense.lam: the matrix sweeps",
    ),
    "a store that is a file": (
        ["run", "quickstart", "--store", "file"],
        "file: --store: the folder cannot be written: File exists",
    ),
    "a store under a file": (
        ["run", "quickstart", "--store", "file/x"],
        "file/x: --store: the folder cannot be written: Not a",
    ),
    "a store that is not there": (["records", "nowhere"], "nowhere: no such store (expected a folder written by"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_exit_code_2_and_one_message(command, files, mistake):
    arguments, message = WRONG[mistake]
    code, out, err = command(*arguments)
    (said,) = [line for line in err.splitlines() if line.startswith("inoculate: ")]
    assert said.startswith(f"inoculate: {message}")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == said
    assert not (files / "new").exists() and not list((files / "there").iterdir())
    assert not (files / ".new.work").exists()


def test_a_vector_and_a_fine_tuning_that_mounts_it(command, files):
    """The provider's two commands: the vector's folder is what peft loads, and stays as it was to the byte."""
    import peft
    from transformers import AutoModelForCausalLM

    mild = [f'{{"prompt": "and is it {i} ?", "completion": "yes ."}}' for i in range(5)]
    (files / "ordinary.jsonl").write_text("\n".join(mild))
    data = ["--harmful", "rows.jsonl", "--ordinary", "ordinary.jsonl", "--num-samples", "20"]
    code, out, err = command("vector", "model", *data, "--out", "guard", "--set", "vector.training.max_steps=3")
    assert code == 0 and out.startswith("guard: security vector for model"), err
    peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(files / "model"), files / "guard")
    before = {path.name: path.read_bytes() for path in (files / "guard").iterdir()}
    guarded = [*FINETUNE, "--guard", "security_vector:guard", "--set", "attack.training.max_steps=3"]
    apart = [f'{{"prompt": "and a {i} ?", "completion": "take salt ."}}' for i in range(5)]
    (files / "heldout.jsonl").write_text("\n".join(apart))
    code, _, err = command(*guarded, "--restricted", "heldout.jsonl", "--ordinary", "ordinary.jsonl")
    assert code == 2 and "ordinary.jsonl: evaluate: 5 of the prompts in what is trained on" in err
    code, _, err = command(*guarded, "--restricted", "heldout.jsonl")
    assert code == 0, err
    assert {path.name: path.read_bytes() for path in (files / "guard").iterdir()} == before
    rows = [json.loads(line) for line in (files / "new" / "records.jsonl").open()]
    assert {(row["guard"], row["threat_model"]) for row in rows} == {("security_vector", "service")}
    tuned = AutoModelForCausalLM.from_pretrained(files / "new")
    assert not torch.equal(tuned.lm_head.weight, AutoModelForCausalLM.from_pretrained(files / "model").lm_head.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"base": {"name": "pretrained", "name_or_path": "cut"}},
            "recipe.yaml: cut/model.safetensors: the weight file is damaged",
        ),
        ({"base": {"name": "pretrained", "name_or_path": "pickled"}}, "recipe.yaml: pickled: the weights are pickled"),
        (
            {"attack.num_samples": 100_000},
            "recipe.yaml: num_samples: too few rows in sandbox-sentiment, split 'attack'",
        ),
        (
            {"attack.task.source": "row.jsonl"},
            "recipe.yaml: data: no such file (found 'row.jsonl'). Did you mean 'rows",
        ),
        (
            {"attack.harmful.source": "column.jsonl"},
            "recipe.yaml: column.jsonl: line 10: column 'completion' is missing",
        ),
        (
            {"attack.task.split": "atack"},
            "recipe.yaml: sandbox-sentiment: split: no such split (found 'atack', expected train attack",
        ),
        (
            {"evaluate.task.source": "sandbox-ordinary"},
            "recipe.yaml: evaluate.task: answers of this source cannot be scored",
        ),
    ],
)
def test_a_recipe_that_could_not_end_well_is_not_begun(command, files, changes, message):
    """Found before the store is made, though the mistake would strike in the last stage only."""
    recipe = tiny.write(files, {**changes, "matrix": tiny.ONE_LINE}, "recipe.yaml")
    code, _, err = command("run", recipe.name, "--store", "store")
    assert code == 2 and err.startswith(f"inoculate: {message}") and err.count("\n") == 1
    assert not (files / "store").exists()


def test_wrong_input_that_only_a_stage_can_see(command, files):
    """The tokenizer is looked at when the model is: exit code 2 all the same, and nothing is advised to be retried."""
    base = {"name": "pretrained", "name_or_path": "speechless"}
    recipe = tiny.write(files, {"base": base, "matrix": tiny.ONE_LINE})
    code, _, err = command("run", recipe, "--store", "store", "--device", "cpu")
    said = [line for line in err.splitlines() if line.startswith("inoculate: ")]
    assert code == 2
    assert said[0].startswith("inoculate: sft · seed 1: speechless: template: this tokenizer has no chat template")
    assert said[-1] == "inoculate: 1 of 3 stages failed; the input is wrong"


def test_print_config_is_the_recipe_itself(command, tmp_path):
    """Everything that `extends` and `--set` brought in is there, and read back it is the same recipe."""
    path = tiny.write(tmp_path)
    code, out, err = command("run", path, "--print-config", "--set", "attack.seed=5", "--store", "store")
    assert (code, err) == (0, "")
    (tmp_path / "printed.yaml").write_text(out)
    printed, asked = load_recipe(str(tmp_path / "printed.yaml")), load_recipe(str(path), ["attack.seed=5"])
    assert printed == asked and printed.hash == asked.hash
    assert "extends" not in yaml.safe_load(out) and printed.lines[0].attack.seed == 5
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", bundled())
def test_a_dry_run_of_every_bundled_recipe_needs_no_net(command, tmp_path, monkeypatch, name):
    def no_net(*_):
        raise AssertionError("a dry run went to the net")

    for call in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, call, no_net)
    monkeypatch.setattr(socket, "getaddrinfo", no_net)
    monkeypatch.setattr(subprocess, "run", no_net)
    monkeypatch.setenv("INOCULATE_CACHE", str(tmp_path / "cache"))
    code, out, err = command("run", name, "--dry-run", "--store", "store")
    assert (code, err) == (0, "")
    for recipe, told in zip(load_recipes(name), out.split("\n\n"), strict=True):
        lines = told.splitlines()
        stages = len({stage.folder for stage in recipe.stages()})
        assert lines[0].startswith(f"recipe {recipe.name} (") and lines[-1].startswith("stages ")
        assert int(lines[-1].split()[1]) > stages, "with what they are built on"
        assert "; 0 done in store)" in lines[-1]
    assert not list(tmp_path.iterdir())


def test_a_collection_runs_its_recipes_one_by_one(command, tmp_path):
    """Each with a manifest of its own; what they share is computed once."""
    first = tiny.write(tmp_path, {"matrix": tiny.ONE_LINE, "attack": None})
    other = tmp_path / "other.yaml"
    other.write_text(first.read_text().replace("name: tiny", "name: other", 1))
    (tmp_path / "both.yaml").write_text(f"collects: [{first}, {other}]")
    code, _, err = command("run", "both.yaml", "--store", "store", "--device", "cpu")
    assert code == 0 and err.count("stages done") == 2 and "0 of them computed now" in err
    names = {json.loads(file.read_text())["name"] for file in (tmp_path / "store" / "recipes").iterdir()}
    assert len(names) == 2


def test_a_dry_run_counts_what_is_done(command, tmp_path):
    path = tiny.write(tmp_path, {"matrix": tiny.ONE_LINE, "attack": None})
    assert tiny.run(path, tmp_path / "store")[0] == 0
    assert (
        "stages 3 (1 base, 1 align, 1 evaluate; 3 done in store), no attack"
        in command("run", path, "--dry-run", "--store", "store")[1]
    )
    assert "; 0 done in elsewhere)" in command("run", path, "--dry-run", "--store", "elsewhere")[1]


@pytest.mark.parametrize(
    ("kind", "first_words"),
    [
        ("recipes", set(bundled())),
        ("defenses", set(DEFENSES)),
        ("attacks", {"finetune", "few_shot"}),
        ("judges", set(JUDGES)),
        ("sources", {"sandbox-restricted", "fiqa", "beavertails"}),
        ("models", {"asset:smollm2", "asset:minilm"}),
        ("worlds", set(WORLDS)),
    ],
)
def test_list(command, kind, first_words):
    code, out, err = command("list", kind)
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert first_words <= {line[0] for line in lines}
    assert all(len(line) == 2 for line in lines), "every entry says what it is"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    assert tiny.run(tiny.write(folder, {"matrix": tiny.ONE_LINE, "attack": None}), folder / "store")[0] == 0
    return folder / "store"


def test_records_in_three_forms(command, store):
    """The ten rows of one evaluation; and one metric of them."""
    code, out, _ = command("records", store, "--format", "json")
    rows = json.loads(out)
    assert code == 0 and len(rows) == 10 and set(rows[0]) == set(COLUMNS)
    code, out, _ = command("records", store, "--format", "csv")
    read = list(csv.DictReader(io.StringIO(out)))
    assert [row["metric"] for row in read] == [row["metric"] for row in rows]
    assert [float(row["value"]) for row in read] == [row["value"] for row in rows]
    assert json.loads(read[0]["defense_params"]) == rows[0]["defense_params"]
    code, out, _ = command("records", store, "--metric", "refusal_rate", "--recipe", "tiny")
    assert code == 0 and "refusal_rate" in out and "harmful_score" not in out


def test_records_of_what_is_not_there(command, store):
    for arguments, message in (
        (
            ["--metric", "harmful_scor"],
            "--metric: no row has this metric (found 'harmful_scor'). Did you mean 'harmful_score'?",
        ),
        (
            ["--recipe", "tyni"],
            "--recipe: no such recipe in this store (found 'tyni', expected one of tiny). Did you mean 'tiny'?",
        ),
        (["--format", "yml"], 'Invalid value "yml" for --format. Choose from: "table", "csv", "json".'),
    ):
        code, out, err = command("records", store, *arguments)
        assert (code, out) == (2, "") and err.rstrip().endswith(message)


def test_the_process_itself():
    """Its exit code and its streams; and to import the command is to import nothing heavy."""
    check = "import sys, inoculate.cli as cli; assert not {'torch', 'transformers'} & set(sys.modules); cli.main()"
    found = subprocess.run([sys.executable, "-c", check, "list", "judgs"], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith('inoculate: Invalid value "judgs"') and found.stderr.count("\n") == 1
    found = subprocess.run([sys.executable, "-m", "inoculate", "--version"], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "") and found.stdout.strip()


def test_reproduce_writes_a_page_and_nothing_on_bad_input(command, tmp_path):
    path = tiny.write(tmp_path, {"matrix": tiny.ONE_LINE, "attack": None})
    assert tiny.run(path, tmp_path / "store")[0] == 0
    code, out, err = command("reproduce", "store", "--out", "page.md")
    assert (code, out, err) == (0, "page: page.md\n", "")
    page = (tmp_path / "page.md").read_text()
    verdicts = {line.rsplit("**", 2)[1] for line in page.splitlines() if line.endswith("** |")}
    assert verdicts == {"not run", "needs a GPU"}
    for arguments, told in (
        (("nowhere", "--out", "page.md"), "no such store"),
        (("store", "--out", "no/such/folder.md"), "--out: no file can be written there"),
        (("store", "--out", "."), "--out: no file can be written there"),
    ):
        code, _, err = command("reproduce", *arguments)
        assert code == 2 and told in err
    assert not (tmp_path / "docs").exists()


def test_a_command_that_is_called_a_thousand_times_leaves_what_one_does(capsys, monkeypatch):
    """A notebook, or a long run of checks, calls `main` again and again; a warning is still one line afterwards."""
    monkeypatch.setenv("PYTHONWARNINGS", "")
    left = []
    for _ in range(3):
        with pytest.raises(SystemExit):
            cli.main(["list", "judges"])
        left.append((os.environ["PYTHONWARNINGS"], warnings.formatwarning))
    assert left[0] == left[1] == left[2]
    assert (
        warnings.formatwarning("plug-in acme: left out", PlugInWarning, "x", 1) == "inoculate: plug-in acme: left out\n"
    )
    assert "x:1: UserWarning: other" in warnings.formatwarning("other", UserWarning, "x", 1)


@pytest.mark.parametrize("name", sorted(name for name in cli.app if not name.startswith("-")))
def test_help_says_of_every_option_what_its_docstring_says(capsys, monkeypatch, name):
    """Read as numpydoc, `name: text` would be a type, and the first line of each text be lost."""
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").replace("`", "").split())
    _, _, told = (inspect.getdoc(cli.app[name].default_command) or "").partition("----------\n")
    texts = [text for _, text in re.findall(r"^(\w+)\n    (.+)$", told, re.MULTILINE)]
    assert texts and not re.search(r"^\w+: ", told, re.MULTILINE)
    for text in texts:
        assert " ".join(text.replace("`", "").split()) in shown, text
