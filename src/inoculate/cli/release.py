"""Verbs that hand a model on."""

from __future__ import annotations

from pathlib import Path

from inoculate.cli.app import (
    MeasuredIn,
    app,
    say,
)


@app.command
def push(folder: Path, repo: str, *, private: bool = True, attacked: bool = False, measured: MeasuredIn = None) -> int:
    """Push a model's folder to the Hugging Face hub; weights that an attack has trained only with `--attacked`.

    Parameters
    ----------
    folder
        What `align` or `finetune` wrote.
    repo
        org/name.
    private
        Whether a repository that is made now is private.
    attacked
        Push weights that were fine-tuned by an attack all the same.
    """
    from inoculate.experiments.push import own_readme
    from inoculate.experiments.push import push as pushed
    from inoculate.reports.card import model_card

    ours = (folder / "stage.json").exists() and not own_readme(folder)
    text = model_card(folder, measured) if ours or measured is not None else None
    say(f"pushed: {pushed(folder, repo, private=private, attacked=attacked, card=text)}")
    return 0


@app.command
def card(folder: Path, *, measured: MeasuredIn = None) -> int:
    """Show the model card that `push` writes for a folder without a README.md of its own; no network is used.

    Parameters
    ----------
    folder
        What `align`, `finetune` or `vector` wrote, or a stage's folder in a store.
    """
    from inoculate.reports.card import model_card

    say(model_card(folder, measured))
    return 0
