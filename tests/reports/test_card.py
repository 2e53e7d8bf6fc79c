"""The model card: front matter that a hub reads, nothing that no record holds, and nothing of a stranger's Markdown."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import ModelCard
from tests.reports.conftest import Made
from tests.reports.searched import search_stage

from inoculate.cli import main
from inoculate.core.errors import InputError
from inoculate.core.records import Record, write_records
from inoculate.experiments.push import push
from inoculate.reports.card import model_card

ALIGN = {
    "base": {"name": "pretrained", "name_or_path": "lab/base-7b", "revision": "abc123"},
    "defense": {"name": "booster", "lam": 5.0, "alpha": 0.1},
    "data": {
        "roles": {
            "align": [{"source": "beavertails", "split": "train", "answer": "refusal", "num_samples": 10}],
            "harmful": [{"source": "/home/me/secret-place/bad|<b>.jsonl", "split": "train", "answer": "completion"}],
        }
    },
    "training": {"learning_rate": 1e-3, "max_steps": 7},
}
LABEL = "booster <script>alert(1)</script> [x](http://y) *z*\n# top"


@pytest.fixture
def aligned(tmp_path):
    folder = tmp_path / "aligned"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"")
    about = {
        "kind": "align",
        "hash": "abc",
        "label": LABEL,
        "value": ALIGN,
        "status": "ok",
        "environment": {"torch": "2.9"},
    }
    (folder / "stage.json").write_text(json.dumps(about))
    return folder


def on(store, folder: str, *starts: str) -> None:
    """Let a made-up stage start from a model."""
    file = store / folder / "stage.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"upstream": list(starts)}))


def test_front_matter_and_what_made_it(aligned):
    text = model_card(aligned)
    data = ModelCard(text).data.to_dict()
    assert data["base_model"] == "lab/base-7b" and data["datasets"] == ["PKU-Alignment/BeaverTails"]
    assert data["tags"] == ["inoculate", "booster"] and "license" not in data
    for told in (
        "| defense: lam | 5.0 |",
        "| training: max\\_steps | 7 |",
        "| base's revision | abc123 |",
        "CC BY-NC 4.0",
    ):
        assert told in text
    assert "base's license | not known here; it applies to this model too" in text


def test_nothing_is_claimed_that_was_not_measured(aligned):
    text = model_card(aligned)
    assert "Nothing was measured on this model." in text
    assert "What it costs to break is not known." in text
    assert "nothing is claimed under any threat model" in text
    assert "Not measured: whether it does what is restricted (harmful\\_score)." in text


def test_a_stranger_s_text_is_text(aligned):
    """The label's markup is escaped on its one line, and a local file is named without its folder."""
    text = model_card(aligned)
    (title,) = (line for line in text.splitlines() if line.startswith("# "))
    assert title == "# booster &lt;script>alert(1)&lt;/script> \\[x\\](http://y) \\*z\\* \\# top"
    assert "secret-place" not in text and "a local file, bad\\|&lt;b>.jsonl" in text


def test_cost_to_break_from_a_store(aligned, tmp_path):
    """Booster broke in three of four runs at 40, 40 and 60; a search that never broke it reads `> 100`."""
    made = Made(tmp_path / "store")
    control = search_stage(made, "sft", 1, (20, 20))
    ours = search_stage(made, "booster", 1, (40, 40, 60, None), control=control)
    blank = Record("", 0.0, defense="booster", attack="none", threat_model="open_weights")
    rows = [Record(**{**blank_fields(blank), "metric": "harmful_score", "value": 0.25, "n": 40, "judge": "refusal"})]
    looked = made.stage("evaluate", "evaluate booster", rows)
    other = search_stage(made, "vaccine", 2, (70, 70))
    store = made.manifest()
    for folder in (ours, looked):
        on(store, folder, "align-abc")
    text = model_card(aligned, store)
    assert "broke it in 3 of 4 runs" in text and "40–> 100 in 4 runs, too few for an interval" in text
    assert "2.5×" in text or "2.0×" in text
    assert "| harmful\\_score | 0.25 (0.14–0.40) | 40 | refusal |" in text
    assert "Measured under: open\\_weights." in text
    assert "Guards not tried" in text and "Vaccine" not in text and other
    never = search_stage(made, "booster", 1, (None, None))
    on(made.manifest(), never, "align-abc")
    on(store, ours)
    assert "> 100 (2 runs, none broke)" in model_card(aligned, store)


def blank_fields(record: Record) -> dict:
    return {name: getattr(record, name) for name in record.__slots__}


def test_a_store_of_other_models_is_refused(aligned, tmp_path):
    made = Made(tmp_path / "store")
    search_stage(made, "booster", 1, (40, 40))
    with pytest.raises(InputError, match="nothing in this store was measured on this model"):
        model_card(aligned, made.manifest())
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"stage\.json: nothing says what made this model"):
        model_card(tmp_path / "empty")


def test_attacked_weights_and_vectors_say_so(aligned):
    file = aligned / "stage.json"
    about = json.loads(file.read_text())
    task = {"source": "sandbox-sentiment", "split": "attack", "answer": "completion"}
    value = {"model": ALIGN, "attack": {"task": task, "poison_ratio": 0.1}}
    file.write_text(json.dumps(about | {"kind": "finetune", "value": value}))
    steps = Record(
        "steps_to_break", 40.0, n=20, status="censored", attack="finetune", judge="refusal", poison_ratio=0.1
    )
    write_records(aligned / "records.jsonl", [steps])
    text = model_card(aligned)
    assert (
        "fine-tuned by an attack" in text and "| > 40 |" in text and "| fine-tuning: task | sandbox-sentiment |" in text
    )
    guide = [{"source": "/home/me/secret-place/own.jsonl", "split": "train", "answer": "refusal"}]
    value["attack"] |= {"poison_ratio": 0, "harmful": task, "guard": {"name": "lisa", "rho": 0.5, "guide": guide}}
    file.write_text(json.dumps(about | {"kind": "finetune", "value": value}))
    text = model_card(aligned)
    assert "by an attack" not in text and "data that were given as innocent" in text and "| guard | lisa |" in text
    assert "| guard: rho | 0.5 |" in text and "| guard: guide | a local file, own.jsonl |" in text
    assert "secret-place" not in text
    assert "fine-tuning: harmful" not in text, "no row of it was used"
    vector = {"model": ALIGN["base"], "vector": {"data": {"roles": {"harmful": [task]}}}}
    file.write_text(json.dumps(about | {"kind": "vector", "value": vector}))
    text = model_card(aligned)
    assert "Service only" in text and ModelCard(text).data.to_dict()["library_name"] == "peft"


def test_a_fine_tuned_model_has_the_defense_of_what_it_started_from(aligned, tmp_path):
    """The folder that it names stands beside it and says so, as its records do."""
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    attack = {"task": {"source": "sandbox-sentiment", "split": "attack", "answer": "completion"}, "poison_ratio": 0}
    value = {"model": {"name": "pretrained", "name_or_path": str(aligned)}, "attack": attack}
    (tuned / "stage.json").write_text(json.dumps({"kind": "finetune", "hash": "t", "value": value, "status": "ok"}))
    text = model_card(tuned)
    assert "| defense | booster |" in text and "| defense: lam | 5.0 |" in text
    assert ModelCard(text).data.to_dict()["base_model"] == "lab/base-7b"


class Hub:
    endpoint = "https://hub.example"

    def __init__(self):
        self.files, self.ignored = {}, ()

    def create_repo(self, repo, private, exist_ok):
        """There it is."""

    def upload_folder(self, repo_id, folder_path, ignore_patterns):
        self.ignored = ignore_patterns

    def upload_file(self, path_or_fileobj, path_in_repo, repo_id):
        self.files[path_in_repo] = path_or_fileobj.decode()


@pytest.mark.parametrize(
    ("readme", "written"), [(None, True), ("# Mine\n", False), ("## Uses\n\n[More Information Needed]\n", True)]
)
def test_push_writes_it_unless_there_is_one(aligned, monkeypatch, capsys, readme, written):
    """PEFT's unfilled form is no card; the folder itself is left as it was."""
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    if readme is not None:
        (aligned / "README.md").write_text(readme)
    before = {path.name: path.read_bytes() for path in aligned.iterdir()}
    with pytest.raises(SystemExit) as ended:
        main(["push", str(aligned), "lab/model"])
    assert ended.value.code == 0
    assert ("README.md" in hub.files) is written and ("README.md" in hub.ignored) is written
    assert {path.name: path.read_bytes() for path in aligned.iterdir()} == before
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["card", str(aligned)])
    if written:
        assert capsys.readouterr().out.strip() == hub.files["README.md"].strip()


def test_push_without_a_card_is_as_it_was(aligned, monkeypatch):
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    push(aligned, "lab/model", private=True, attacked=False)
    assert not hub.files and "README.md" not in hub.ignored
