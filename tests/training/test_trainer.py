from __future__ import annotations

import pytest
from torch.testing import assert_close
from torch.utils.data import Dataset
from transformers import TrainingArguments

from inoculate.core.errors import InputError
from inoculate.data.batches import Feed, pad
from inoculate.data.mix import PAIRED
from inoculate.defenses import DEFENSES, Booster, Lisa, SecurityVector
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


def trainer(model, rows, defense, out, batch=8, parts=1):
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=4,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=parts,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        weight_decay=0.1,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=True,
    )
    return DefenseTrainer(
        model,
        arguments,
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


APART = ("lisa", "mlac", "repnoise")
"""Lisa's settings are given below. MLAC and RepNoise come to other weights in the two loops: not looked into."""
ALIGNING = [kind() for name, kind in DEFENSES.items() if "align" in kind().needs and name not in APART]


@pytest.mark.parametrize(
    "defense",
    [*ALIGNING, Lisa(align_steps=1, user_steps=2, rho=50)],
    ids=lambda defense: defense.name,
)
def test_gives_the_weights_that_fit_gives(tokenizer, rows, defense, tmp_path):
    """Each batch is the whole data set, so that both see the same rows in every step."""
    build = lambda: TinyModel(hidden_size=32, intermediate_size=64, num_attention_heads=2).build(len(tokenizer), seed=0)  # noqa: E731
    theirs, ours = build(), build()
    trainer(theirs, rows, defense, tmp_path).train()
    feeds = {role: Feed(encoded[:8], 8, 0, PAIRED.get(role, role)) for role, encoded in rows.items()}
    fit(ours, defense, feeds, Training(learning_rate=1e-3, max_steps=4, weight_decay=0.1))
    for (name, a), b in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        if "norm" in name:  # Trainer spares norms and biases the weight decay
            continue
        assert_close(a, b, rtol=2e-3, atol=2e-5)


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


def test_a_missing_role_is_named(tiny, tmp_path):
    with pytest.raises(InputError, match="harmful"):
        DefenseTrainer(tiny, TrainingArguments(output_dir=str(tmp_path), use_cpu=True), defense=Booster())
