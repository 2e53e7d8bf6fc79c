"""Two processes make what one makes: gradients, checkpoints, and what cannot be divided refused."""

from __future__ import annotations

import json

import pytest
import torch
from tests.launch import launch

from inoculate.core import ranks
from inoculate.core.errors import InputError
from inoculate.data.batches import Feed, Share, TensorFeed
from inoculate.defenses import DEFENSES, MLAC, SFT, AdversarialTraining, SecurityVector
from inoculate.training.config import Training
from inoculate.training.fit import fit

DIVIDED = ("data", "weights")


@pytest.mark.parametrize("divided", DIVIDED)
def test_every_defense_has_the_gradient_of_one_process(divided):
    ran = launch(divided, "tests/training/in_shares.py", "gradients")
    assert ran.returncode == 0, ran.stderr
    apart = json.loads(ran.stdout.splitlines()[-1])
    # of eight defenses two ways, two of them in two more; the min-min vector does not shard
    assert len(apart) == (20 if divided == "data" else 18)
    assert max(apart.values()) < 1e-6, apart  # 0.1 × the sum of three gradients


@pytest.mark.parametrize("divided", DIVIDED)
def test_a_checkpoint_goes_on_in_another_number_of_processes(divided, tmp_path):
    ran = launch(divided, "tests/training/in_shares.py", "resume", str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    apart = json.loads(ran.stdout.splitlines()[-1])
    assert apart.keys() == {"then alone", "then together"} and max(apart.values()) < 1e-5, apart


def test_shares_of_a_step_are_its_rows_each_once_and_weigh_as_they_should(rows):
    feed = Feed(rows["align"][:7], 7, 0, "align")
    whole = feed.rows_at(0)
    for parts in (1, 2, 3):
        shares = [feed.batches_at(0, parts, Share(rank, 3)) for rank in range(3)]
        assert [len(share) for share in shares] == [parts] * 3
        seen, weight = [], 0.0
        for number in range(parts):
            for share in shares:
                batch = share[number]
                answers = int((batch["labels"] != -100).sum())
                total = sum(len(row.ids) - row.n_prompt for row in whole)
                if batch["loss_weight"] > 0:
                    assert batch["loss_weight"].item() == pytest.approx(parts * answers / total)
                    pairs = zip(batch["input_ids"], batch["attention_mask"], strict=True)
                    seen += [ids[mask.bool()].tolist() for ids, mask in pairs]
                weight += float(batch["loss_weight"])
        assert seen == [list(row.ids) for row in whole] and weight == pytest.approx(parts)


def test_shares_of_tensors():
    feed = TensorFeed({"x": torch.arange(5)}, 5, 0, "align")
    (whole,) = feed.batches_at(0)
    shares = [feed.batches_at(0, 1, Share(rank, 2))[0] for rank in range(2)]
    assert torch.equal(torch.cat([share["x"] for share in shares]), whole["x"])
    assert [float(share["loss_weight"]) for share in shares] == pytest.approx([0.4, 0.6])


def test_what_cannot_be_divided_is_refused(monkeypatch, tiny, rows):
    monkeypatch.setattr(ranks, "count", lambda: 2)
    monkeypatch.setattr(ranks, "rank", lambda: 0)
    feeds = {role: Feed(encoded, 4, 0, role) for role, encoded in rows.items()}
    for defense in (MLAC(), AdversarialTraining()):
        with pytest.raises(InputError, match=rf"defense: it trains in one process.*found '{defense.name}'"):
            fit(tiny, defense, feeds, Training(max_steps=1))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="its weights must be whole in each process: launch without FSDP"):
        fit(tiny, SecurityVector(inner_steps=2), feeds, Training(max_steps=1))
    for optim in ("adafactor", "muon"):
        with pytest.raises(InputError, match=r"training\.optim: it looks at whole matrices.*adamw_torch or sgd"):
            fit(tiny, SFT(), feeds, Training(max_steps=1, optim=optim))


def test_each_defense_says_whether_it_can_be_divided():
    divided = {name for name, kind in DEFENSES.items() if hasattr(kind, "parallel")}
    assert divided == {"sft", "booster", "vaccine", "repnoise", "together", "lisa", "security_vector"}
