from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from datasets import Dataset as Table
from safetensors.torch import load_file
from tests.launch import ROOT, launch
from torch.testing import assert_close
from torch.utils.data import Dataset
from transformers import TrainingArguments
from trl import SFTConfig

from inoculate.core import ranks
from inoculate.core.errors import InputError
from inoculate.data import world
from inoculate.data.batches import Feed, pad
from inoculate.data.mix import PAIRED
from inoculate.data.templates import Encoded
from inoculate.defenses import DEFENSES, MLAC, Booster, Lisa, SecurityVector
from inoculate.models.sandbox import TinyModel
from inoculate.training.config import Training
from inoculate.training.fit import fit
from inoculate.training.trainer import DefenseTrainer


class Rows(Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


def arguments(out, batch, parts):
    return {
        "output_dir": str(out),
        "max_steps": 4,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": parts,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,  # Trainer would spare norms and biases
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }


def trainer(model, rows, defense, out, batch=8, parts=1):
    return DefenseTrainer(
        model,
        TrainingArguments(**arguments(out, batch, parts), remove_unused_columns=False),
        data_collator=lambda features: dict(pad(features, 0)),
        train_dataset=Rows(rows["align"][:8]),
        defense=defense,
        role_datasets={role: Rows(encoded[:8]) for role, encoded in rows.items() if role != "align"},
    )


def test_refuses_what_a_trainer_cannot_train(tokenizer, rows, tmp_path):
    model = TinyModel(hidden_size=32, intermediate_size=64, num_attention_heads=2).build(len(tokenizer), seed=0)
    with pytest.raises(InputError, match="defense: this defense does not train a model by `train_dataset`"):
        trainer(model, rows, SecurityVector(), tmp_path)
    lisa = trainer(model, rows, Lisa(), tmp_path)
    lisa.state.global_step, lisa.state.max_steps = 2, 4
    with pytest.raises(InputError, match="resume_from_checkpoint: lisa keeps something between steps"):
        lisa._objective(model)


ALIGNING = {name: kind() for name, kind in DEFENSES.items() if "align" in kind().needs}
ALIGNING |= {"lisa": Lisa(align_steps=1, user_steps=2, rho=50)}


@pytest.mark.parametrize("defense", ALIGNING.values(), ids=ALIGNING)
def test_gives_the_weights_that_fit_gives(tokenizer, rows, defense, tmp_path):
    """Each batch is the whole data set, so that both see the same rows in every step; where a defense needs several
    batches of a role, all rows are one, since an inner loop makes much of a rounding. Noise and inner learning rates are
    drawn alike."""
    build = lambda: TinyModel(hidden_size=32, intermediate_size=64, num_attention_heads=2).build(len(tokenizer), seed=0)  # noqa: E731
    theirs, ours, needs = build(), build(), defense.needs
    several = any(n > 1 for n in needs.values())
    given = {role: [rows[role][0]] * 8 if several else rows[role][:8] for role in needs}
    trainer(theirs, given, defense, tmp_path).train()
    feeds = {role: Feed(given[role] * n, 8 * n, 0, PAIRED.get(role, role)) for role, n in needs.items()}
    fit(ours, defense, feeds, Training(learning_rate=1e-3, max_steps=4))
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert_close(a, b, rtol=2e-3, atol=1e-4)  # of four steps of 1e-3; Adam makes much of gradients near 0


def test_accumulated_micro_batches_are_averaged(tokenizer, rows, tmp_path):
    build = lambda: TinyModel(hidden_size=32, intermediate_size=64, num_attention_heads=2).build(len(tokenizer), seed=0)  # noqa: E731
    same = {role: [encoded[0]] * 8 for role, encoded in rows.items()}
    one, four = build(), build()
    trainer(one, same, Booster(), tmp_path).train()
    trainer(four, same, Booster(), tmp_path, batch=2, parts=4).train()
    for a, b in zip(one.parameters(), four.parameters(), strict=True):
        assert_close(a, b, rtol=2e-3, atol=2e-5)


def test_paired_roles_come_in_one_order_and_others_in_their_own(tokenizer, rows, tmp_path):
    model = TinyModel(hidden_size=32, intermediate_size=64, num_attention_heads=2).build(len(tokenizer), seed=0)
    given = trainer(model, rows, Booster(), tmp_path, batch=2)
    same = Rows(rows["align"][:8])
    order = {role: next(given._endless(same, role))["input_ids"].tolist() for role in ("harmful", "safe", "adversary")}
    assert order["harmful"] == order["safe"] != order["adversary"]


def test_two_processes_take_the_steps_of_one(tmp_path):
    """Two processes with three rows each, one with six: the same sums, whatever is nonlinear in the batch."""
    together, alone = tmp_path / "together", tmp_path / "alone"
    for folder in (together, alone):
        folder.mkdir()
    script = "tests/training/trainer_in_shares.py"
    ran = launch("data", script, "3", str(together))
    assert ran.returncode == 0, ran.stderr
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, script, "6", str(alone)], cwd=ROOT, env=env, check=True, capture_output=True)
    files = sorted(alone.glob("*.safetensors"))
    assert {file.stem for file in files} == {"sft", "booster", "vaccine", "repnoise", "together", "lisa"}
    for file in files:
        ours, theirs = load_file(together / file.name), load_file(file)
        apart = max(float((ours[name] - weight).abs().max()) for name, weight in theirs.items())
        assert apart < 2e-6, (file.stem, apart)  # 0.1 × the sum of four gradients


def test_what_takes_other_steps_is_refused(tokenizer, rows, tmp_path, monkeypatch):
    model = TinyModel(hidden_size=32, intermediate_size=64, num_attention_heads=2).build(len(tokenizer), seed=0)
    made = trainer(model, rows, Booster(), tmp_path)
    made.args.fp16 = True
    with pytest.raises(InputError, match=r"fp16: not with a defense as the objective.*expected bf16"):
        made._check()
    made.args.fp16, made.is_fsdp_enabled = False, True
    with pytest.raises(InputError, match=r"fsdp: not with a defense as the objective.*`inoculate\.fit`, which shards"):
        made._check()
    made.is_fsdp_enabled = False
    monkeypatch.setattr(ranks, "count", lambda: 9)
    monkeypatch.setattr(ranks, "rank", lambda: 8)
    with pytest.raises(
        InputError, match=r"role_datasets\.harmful: too few rows .*found 8, expected at least 9, one for"
    ):
        made._endless(Rows(rows["harmful"][:8]), "harmful")
    made.defense = MLAC()
    with pytest.raises(InputError, match="it trains in one process"):
        made._check()


def table(kind, answer="completion"):
    """Rows of the sandbox as TRL takes them."""
    found = world.rows(kind, "train", answer)[:8]
    return Table.from_list([{"prompt": f"{row.prompt}\n", "completion": row.completion} for row in found])


@pytest.mark.parametrize("name", ["sft", "booster", "repnoise"])
def test_trl_s_trainer_takes_the_steps_of_ours(tokenizer, name, tmp_path):
    """The same conversations as plain rows for `DefenseTrainer`, and as prompts and completions for TRL's."""
    from inoculate.training.trl import DefenseSFTTrainer

    build = lambda: TinyModel(hidden_size=32, intermediate_size=64, num_attention_heads=2).build(len(tokenizer), seed=0)  # noqa: E731
    given = {"align": table("ordinary"), "harmful": table("restricted"), "safe": table("restricted", "refusal")}
    ours, theirs = build(), build()
    made = DefenseSFTTrainer(
        theirs,
        args=SFTConfig(**arguments(tmp_path, 8, 1), bf16=False, max_length=64, eos_token=tokenizer.eos_token),
        processing_class=tokenizer,
        train_dataset=given["align"],
        defense=DEFENSES[name](),
        role_datasets=given,
    )
    prepared = {"align": made.train_dataset} | {
        role: made._prepare_dataset(rows, tokenizer, made.args, False, None, role)
        for role, rows in given.items()
        if role != "align"
    }
    plain = {
        role: [Encoded(row["input_ids"], sum(label == -100 for label in row["labels"])) for row in rows]
        for role, rows in prepared.items()
    }
    assert all(0 < row.n_prompt < len(row.ids) for rows in plain.values() for row in rows), "prompts are not learned"
    made.train()
    trainer(ours, plain, DEFENSES[name](), tmp_path).train()
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert_close(a, b, rtol=2e-3, atol=1e-4)
    begin = build()
    assert any(not torch.equal(a, b) for a, b in zip(theirs.parameters(), begin.parameters(), strict=True))


def test_a_missing_role_is_named(tiny, tmp_path):
    with pytest.raises(InputError, match="harmful"):
        DefenseTrainer(tiny, TrainingArguments(output_dir=str(tmp_path), use_cpu=True), defense=Booster())
