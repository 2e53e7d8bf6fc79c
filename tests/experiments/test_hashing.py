"""What names a stage's folder: everything its result depends on, and nothing else."""

from __future__ import annotations

import json

import pytest
import torch
from tests.experiments import tiny

from inoculate.core.hashing import tree_sha256
from inoculate.data import world
from inoculate.experiments.align import Align
from inoculate.experiments.attack import Attack, Evaluate
from inoculate.experiments.recipe import load_recipe
from inoculate.experiments.runner import in_order
from inoculate.experiments.stage import Context
from inoculate.models.sandbox import TinyModel, build_tokenizer


def folders(path, overrides=()):
    """Kind → folders of a recipe's stages."""
    found: dict[str, list[str]] = {}
    for stage in in_order(load_recipe(str(path), overrides).stages()):
        found.setdefault(stage.kind, []).append(stage.folder)
    return found


@pytest.fixture
def line(tmp_path):
    """A file with one line, with the data in local files and a local model as its base."""
    tokenizer = build_tokenizer(world.vocabulary())
    shape = TinyModel(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
    shape.build(len(tokenizer), seed=0).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for name in ("align", "harmful", "task"):
        rows = [{"prompt": f"{name} {i} ?", "completion": str(i)} for i in range(30)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def part(name):
        return {"source": str(tmp_path / f"{name}.jsonl"), "num_samples": 20}

    changes = {
        "base": {"name": "pretrained", "name_or_path": str(tmp_path / "model")},
        "align.data.roles": {"align": [part("align")], "harmful": [part("harmful")]},
        "attack.task": part("task"),
        "matrix": tiny.ONE_LINE,
    }
    tree_sha256.cache_clear()
    yield tiny.write(tmp_path, changes)
    tree_sha256.cache_clear()


def test_equal_values_give_equal_folders(line, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    text = line.read_text().replace("name: tiny", "name: another\ntitle: Another", 1)
    (other / "tiny.yaml").write_text(text)
    assert folders(line) == folders(other / "tiny.yaml"), "name and title of a recipe are not in the hash"


def test_a_default_written_out_changes_nothing(line):
    assert folders(line) == folders(line, ("attack.training.weight_decay=0", "eval_every=3", "align.training.seed=1"))


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("align.training.learning_rate=1e-2", {"align", "evaluate", "finetune"}),
        ("align.training.seed=2", {"align", "evaluate", "finetune"}),
        ("align.data.seed=2", {"align", "evaluate", "finetune"}),
        ("align.data.roles.align.0.num_samples=19", {"align", "evaluate", "finetune"}),
        ("base.dtype=bfloat16", {"align", "evaluate", "finetune"}),
        ("attack.seed=2", {"finetune"}),
        ("attack.training.seed=2", {"finetune"}),
        ("attack.training.learning_rate=1e-2", {"finetune"}),
        ("eval_every=2", {"finetune"}),
        ("break_threshold=0.6", {"finetune"}),
        ("evaluate.max_new_tokens=7", {"evaluate", "finetune"}),
        ("evaluate.restricted.num_samples=9", {"evaluate", "finetune"}),
        ("evaluate.judges=[{name: reference}]", {"evaluate", "finetune"}),
    ],
)
def test_a_setting_changes_the_stages_that_it_reaches(line, override, changed):
    before, after = folders(line), folders(line, (override,))
    assert {kind for kind in before if before[kind] != after[kind]} == changed


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("align.jsonl", {"align", "evaluate", "finetune"}),
        ("task.jsonl", {"finetune"}),
        ("harmful.jsonl", set()),
        ("model/config.json", {"align", "evaluate", "finetune"}),
        ("model/model.safetensors", {"align", "evaluate", "finetune"}),
    ],
)
def test_content_counts_and_sft_does_not_depend_on_harmful_data(line, file, changed):
    before = folders(line)
    path = line.parent / file
    if path.suffix == ".safetensors":
        TinyModel(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1).build(
            len(world.vocabulary()) + 5, seed=1
        ).save_pretrained(path.parent)
    elif path.suffix == ".json":
        path.write_text(path.read_text().replace("\n", "\n\n", 1))
    else:
        path.write_text(path.read_text().replace('"completion": "3"', '"completion": "4"', 1))
    tree_sha256.cache_clear()
    after = folders(line)
    assert {kind for kind in before if before[kind] != after[kind]} == changed


def test_booster_depends_on_harmful_data(line):
    text = line.read_text().replace("- name: sft", "- name: booster")
    line.write_text(text)
    (before,) = folders(line)["align"]
    path = line.parent / "harmful.jsonl"
    path.write_text(path.read_text() + '{"prompt": "one more ?", "completion": "31"}\n')
    assert folders(line)["align"] != [before]


def test_runtime_settings_are_no_part_of_any_stage():
    runtime = {*Context.__dataclass_fields__, "store", "workers"}
    assert runtime >= {"device", "progress", "save_every_s"}
    for kind in (Align, Attack, Evaluate):
        assert not runtime & set(kind.model_fields)


def test_the_store_and_the_number_of_workers_change_no_folder(finished, tmp_path):
    """Written elsewhere by two processes: the same folders with the same records."""
    assert tiny.run(finished.recipe, tmp_path / "elsewhere", workers=2)[0] == 0
    assert tiny.records(tmp_path / "elsewhere") == tiny.records(finished.store)


def test_a_new_version_of_a_kind_renames_its_folders(line, monkeypatch):
    before = folders(line)
    monkeypatch.setattr(Align, "version", Align.version + 1)
    after = folders(line)
    assert {kind for kind in before if before[kind] != after[kind]} == {"align", "evaluate", "finetune"}


def test_threads_are_one():
    assert torch.get_num_threads() == 1


def test_a_field_that_came_later_leaves_old_hashes_alone(tmp_path):
    """Results that were stored before `eval_at` are those of an attack that does not use it."""
    (attack,) = [
        s for s in load_recipe(str(tiny.write(tmp_path, {"matrix": tiny.ONE_LINE}))).stages() if s.kind == "finetune"
    ]
    assert isinstance(attack, Attack)
    with_it = Attack.model_validate({**attack.model_dump(), "eval_at": (1, 2)})
    assert with_it.folder != attack.folder

    class Older(Attack):
        added = frozenset()

    older = Older.model_validate({name: getattr(attack, name) for name in Attack.model_fields})
    assert older.folder != attack.folder
    assert Attack.model_validate(attack.model_dump()).folder == attack.folder
