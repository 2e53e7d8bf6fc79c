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
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig

from inoculate.core import ranks
from inoculate.core.errors import InputError
from inoculate.data import world
from inoculate.data.batches import Feed, pad
from inoculate.data.mix import PAIRED
from inoculate.data.templates import Encoded
from inoculate.defenses import DEFENSES, MLAC, SFT, Booster, Lisa, RepNoise, SecurityVector
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
        "seed": 0,  # as of `fit`
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


def trainer(model, rows, defense, out, batch=8, parts=1, **roles):
    return DefenseTrainer(
        model,
        TrainingArguments(**arguments(out, batch, parts), remove_unused_columns=False),
        data_collator=lambda features: dict(pad(features, 0)),
        train_dataset=Rows(rows["align"][:8]),
        defense=defense,
        role_datasets={role: Rows(encoded[:8]) for role, encoded in rows.items() if role != "align"} | roles,
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
ALIGNING |= {"lisa": Lisa(align_steps=1, user_steps=2, rho=50), "repnoise": RepNoise(alpha=0.5, beta=1)}


@pytest.mark.parametrize("defense", ALIGNING.values(), ids=ALIGNING)
def test_gives_the_weights_that_fit_gives(tokenizer, rows, defense, tmp_path):
    """Each batch is the whole data set, so that both see the same rows in every step; where a defense needs several
    batches of a role, all rows are one, since an inner loop makes much of a rounding. Noise and inner learning rates are
    drawn alike."""
    build = lambda: TinyModel(hidden_size=32, intermediate_size=64, num_attention_heads=2).build(len(tokenizer), seed=0)  # noqa: E731
    theirs, ours, needs = build(), build(), defense.needs
    several = any(n > 1 for n in needs.values()) or defense.name == "repnoise"
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
    given._datasets = dict.fromkeys(("harmful", "safe", "adversary"), Rows(rows["align"][:8]))
    order = {role: next(given._endless(role, 0))["input_ids"].tolist() for role in given._datasets}
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


@pytest.mark.parametrize(
    ("patched", "told"),
    [
        ({"fp16": True}, r"fp16: not with a defense as the objective.*expected bf16"),
        ({"_n_gpu": 2}, r"n_gpu: not with a defense as the objective \(found 2, expected a process for each"),
    ],
)
def test_what_takes_other_steps_is_refused(tokenizer, rows, tmp_path, monkeypatch, patched, told):
    model = TinyModel(hidden_size=32, intermediate_size=64, num_attention_heads=2).build(len(tokenizer), seed=0)
    init = Trainer.__init__

    def patch(self, *args, **kwargs):
        init(self, *args, **kwargs)
        for name, value in patched.items():
            setattr(self.args, name, value)

    monkeypatch.setattr(Trainer, "__init__", patch)
    with pytest.raises(InputError, match=told):
        trainer(model, rows, Booster(), tmp_path)


def test_what_shards_or_has_too_few_rows_is_refused(tokenizer, rows, tmp_path, monkeypatch):
    model = TinyModel(hidden_size=32, intermediate_size=64, num_attention_heads=2).build(len(tokenizer), seed=0)
    made = trainer(model, rows, Booster(), tmp_path)
    made.is_fsdp_enabled = True
    with pytest.raises(InputError, match=r"fsdp: not with a defense as the objective.*`inoculate\.fit`, which shards"):
        made._check()
    with pytest.raises(InputError, match=r"role_datasets: a dataset is missing \(found \"'harm'\", .* role 'harmful'"):
        trainer(model, {"align": rows["align"], "harm": rows["harmful"]}, Booster(), tmp_path)
    with pytest.raises(InputError, match="defense: not a defense \\(found 'booster'"):
        trainer(model, rows, "booster", tmp_path)
    with pytest.raises(InputError, match=r"role_datasets\.harmful: it cannot be shuffled"):
        trainer(model, rows, Booster(), tmp_path, harmful=iter(rows["harmful"]))
    monkeypatch.setattr(ranks, "count", lambda: 9)
    with pytest.raises(
        InputError, match=r"role_datasets\.harmful: too few rows .*found 8, expected at least 9, one for"
    ):
        trainer(model, rows, Booster(), tmp_path)
    with pytest.raises(InputError, match="it trains in one process"):
        trainer(model, rows, MLAC(), tmp_path)


def test_micro_batches_count_by_their_answer_tokens(tokenizer, rows, tmp_path):
    """Eight rows at once, or one by one: one gradient, though their answers are not of one length. And an epoch's last
    step, of fewer micro-batches, is no smaller."""
    build = lambda: TinyModel(hidden_size=32, intermediate_size=64, num_attention_heads=2).build(len(tokenizer), seed=0)  # noqa: E731
    assert len({len(row.ids) - row.n_prompt for row in rows["align"][:8]}) > 1
    whole, parts = Grads(), Grads()
    for seen, batch, steps in ((whole, 8, 1), (parts, 1, 8)):
        made = trainer(build(), rows, SFT(), tmp_path, batch=batch, parts=steps)
        made.args.max_steps = 1
        made.add_callback(seen)
        made.train()
    assert_close(parts.seen[0], whole.seen[0], rtol=1e-3, atol=1e-6)
    drawn = trainer(build(), rows, Booster(), tmp_path, batch=1, parts=8)._drawn(
        [made.data_collator(rows["align"][:1])] * 8
    )
    harmful = [batches["harmful"][0] for batches in drawn]
    answers = [int((batch["labels"] != -100).sum()) for batch in harmful]
    weights = [float(batch["loss_weight"]) for batch in harmful]
    assert len(set(answers)) > 1 and weights == pytest.approx([8 * n / sum(answers) for n in answers])
    short = trainer(build(), {role: of[:5] for role, of in rows.items()}, SFT(), tmp_path, batch=1, parts=4)
    short.args.max_steps, short.args.max_grad_norm = 2, 0.0
    short.add_callback(last := Grads())
    short.train()
    lengths = [float(grad.norm()) for grad in last.seen]
    assert 1 < lengths[1] / lengths[0] < 4, "of one row, and not a quarter of it"


class Grads(TrainerCallback):
    """The gradient before each step."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.seen.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))


def test_rows_that_are_cut_before_their_answers_are_named(tokenizer, rows, tmp_path):
    model = TinyModel(hidden_size=32, intermediate_size=64, num_attention_heads=2).build(len(tokenizer), seed=0)
    cut = {role: [Encoded(row.ids[: row.n_prompt], row.n_prompt) for row in of[:8]] for role, of in rows.items()}
    with pytest.raises(InputError, match="harmful: a step without a token to learn"):
        trainer(model, {**rows, "harmful": cut["harmful"]}, Booster(), tmp_path).train()


def test_a_run_that_goes_on_draws_what_it_would_have_drawn(tokenizer, rows, tmp_path):
    model = TinyModel(hidden_size=32, intermediate_size=64, num_attention_heads=2).build(len(tokenizer), seed=0)
    whole, later = (trainer(model, rows, Booster(), tmp_path, batch=2, parts=2) for _ in range(2))
    samples = [whole.data_collator(rows["align"][:2])] * 2
    drawn = [whole._drawn(samples) for _ in range(4)]
    later.state.global_step = 2
    again = later._drawn(samples)
    for a, b in zip(drawn[2], again, strict=True):
        assert torch.equal(a["harmful"][0]["input_ids"], b["harmful"][0]["input_ids"])
    assert not torch.equal(drawn[0][0]["harmful"][0]["labels"], drawn[2][0]["harmful"][0]["labels"])


def test_what_the_defense_measures_is_logged(tokenizer, rows, tmp_path):
    model = TinyModel(hidden_size=32, intermediate_size=64, num_attention_heads=2).build(len(tokenizer), seed=0)
    made = trainer(model, rows, Booster(), tmp_path)
    made.args.logging_strategy, made.args.logging_steps, made.state.logging_steps = "steps", 2, 2
    made.train()
    told = [row for row in made.state.log_history if "loss" in row]
    assert told and all({"align_loss", "harmful_loss", "harmful_drop"} <= row.keys() for row in told)
    assert told[0]["loss"] == pytest.approx(told[0]["align_loss"], abs=1e-3)


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
