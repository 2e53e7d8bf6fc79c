"""The vector in a stock Trainer: mounted for the steps alone, and the weights that `fit` gives."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from tests.training.test_trainer import Rows
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from inoculate.core.errors import InputError
from inoculate.data import world
from inoculate.data.batches import Feed, pad
from inoculate.defenses import SFT
from inoculate.models.adapters import Lora, add_vector
from inoculate.models.vectors import ABOUT, mounted, probe
from inoculate.training.callback import SecurityVectorCallback
from inoculate.training.config import Training
from inoculate.training.fit import fit


@pytest.fixture
def folder(tiny, tmp_path):
    model = add_vector(copy.deepcopy(tiny), Lora(r=4, lora_alpha=8, target_modules="all-linear"), seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(tmp_path / "vector")
    (tmp_path / "vector" / ABOUT).write_text(json.dumps({"probe": probe(tiny)}))
    return tmp_path / "vector"


def trainer(model, rows, folder, out, **options):
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=4,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        report_to=[],
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=True,
        **options,
    )
    data = Rows(rows["harmful"][:8])
    return Trainer(
        model,
        arguments,
        data_collator=lambda features: dict(pad(features, 0)),
        train_dataset=data,
        eval_dataset=data,
        callbacks=[SecurityVectorCallback(folder)],
    )


def test_gives_the_weights_that_fit_gives(tiny, rows, folder, tmp_path):
    theirs, ours = copy.deepcopy(tiny), copy.deepcopy(tiny)
    trainer(theirs, rows, folder, tmp_path / "out", save_strategy="no").train()
    feeds = {"align": Feed(rows["harmful"][:8], 8, 0, "align")}
    with mounted(ours, folder):
        fit(ours, SFT(), feeds, Training(learning_rate=1e-3, max_steps=4))
    unguarded = copy.deepcopy(tiny)
    fit(unguarded, SFT(), feeds, Training(learning_rate=1e-3, max_steps=4))
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert (
        max(float((a - b).abs().max()) for a, b in zip(unguarded.parameters(), ours.parameters(), strict=True)) > 1e-4
    )
    assert not any(module._forward_hooks for module in theirs.modules())


def test_what_is_saved_and_evaluated_on_the_way_is_without_it(tiny, rows, folder, tmp_path):
    made = trainer(
        tiny, rows, folder, tmp_path / "out", save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2
    )
    made.train()
    losses = [entry["eval_loss"] for entry in made.state.log_history if "eval_loss" in entry]
    assert len(losses) == 2 and losses[-1] == pytest.approx(made.evaluate()["eval_loss"])
    with mounted(tiny, folder, check=False):
        assert made.evaluate()["eval_loss"] != pytest.approx(losses[-1], rel=1e-3)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "checkpoint-4")
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), tiny.parameters(), strict=True))


def test_a_run_after_one_that_broke_off_mounts_it_once(tiny, rows, folder, tmp_path):
    """No callback hears of an exception inside a step: the next run takes the vector out first."""
    made = trainer(tiny, rows, folder, tmp_path / "out", save_strategy="no")
    step = made.training_step

    def failing(*args, **kwargs):
        raise RuntimeError("out of memory")

    made.training_step = failing
    with pytest.raises(RuntimeError):
        made.train()
    seen = []
    made.training_step = lambda *args, **kwargs: (
        seen.append(sum(len(module._forward_hooks) for module in tiny.modules())) or step(*args, **kwargs)
    )
    made.train()
    assert set(seen) == {14}  # one on each linear layer of two
    assert not any(module._forward_hooks for module in tiny.modules())


def test_refuses_a_vector_of_another_model(tiny, rows, folder, tmp_path):
    with torch.no_grad():
        tiny.lm_head.weight.mul_(3)
    with pytest.raises(InputError, match="made for another model"):
        trainer(tiny, rows, folder, tmp_path / "out", save_strategy="no").train()


def test_in_trl(tiny, tokenizer, folder, tmp_path):
    """Mounted in each of TRL's steps, and gone when its trainer is done."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [
        {"messages": [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.completion}]}
        for row in world.rows("restricted", "train")[:16]
    ]
    guard, on = SecurityVectorCallback(folder), []

    class Watched(SFTTrainer):
        def training_step(self, *args, **kwargs):
            on.append(guard._mounted.on)
            return super().training_step(*args, **kwargs)

    arguments = SFTConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=3,
        per_device_train_batch_size=4,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    data = Dataset.from_list(rows)
    Watched(tiny, args=arguments, train_dataset=data, processing_class=tokenizer, callbacks=[guard]).train()
    assert on == [True, True, True] and not guard._mounted.on
