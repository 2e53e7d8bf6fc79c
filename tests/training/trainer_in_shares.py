"""Run by one process, or by every process of a launch: trains with `DefenseTrainer`, and the first writes the weights.

python tests/training/trainer_in_shares.py ROWS_OF_A_PROCESS FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.training.in_shares import CASES, TOKENIZER, feeds_of, model_for
from torch.utils.data import Dataset
from transformers import TrainingArguments

from inoculate.core import ranks
from inoculate.data.batches import pad
from inoculate.training.config import Training
from inoculate.training.trainer import DefenseTrainer

ROWS = 12


class Rows(Dataset):
    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        return self.rows[i]


def main() -> None:
    own, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    assert len(TOKENIZER) > 0
    for name, defense in CASES.items():
        if "align" not in defense.needs:
            continue
        given = {role: feed.rows[:ROWS] for role, feed in feeds_of("padded").items()}
        model = model_for(defense, Training())
        arguments = TrainingArguments(
            output_dir=str(folder / "out"),
            max_steps=4,
            per_device_train_batch_size=own,
            gradient_accumulation_steps=2,
            learning_rate=0.1,
            optim="sgd",
            lr_scheduler_type="constant",
            max_grad_norm=0.1 if name == "booster" else 0.0,
            seed=3,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=True,
        )
        DefenseTrainer(
            model,
            arguments,
            data_collator=lambda rows: dict(pad(rows, 0)),
            train_dataset=Rows(given["align"]),
            defense=defense,
            role_datasets={role: Rows(rows) for role, rows in given.items()},
        ).train()
        if ranks.rank() == 0:
            weights = {key: weight.detach().clone() for key, weight in model.named_parameters()}
            save_file(weights, folder / f"{name}.safetensors")


if __name__ == "__main__":
    main()
