"""Where a line starts: the sandbox's own base model, or one that exists."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from inoculate.core.hashing import tree_sha256
from inoculate.core.records import Record, write_records
from inoculate.core.types import JsonDict, Value
from inoculate.data import world
from inoculate.data.mix import Mix, Part
from inoculate.defenses import SFT
from inoculate.experiments.stage import Context, Stage, gave_up, save_model
from inoculate.models.checkpoint import ASSET, check_adapter, check_weights, locate, packaged_model
from inoculate.models.sandbox import TinyModel, build_tokenizer
from inoculate.training.config import Training


class Sandbox(Stage):
    """The sandbox's base model, tiny and taught to answer every request of its world, restricted ones too."""

    kind: ClassVar[str] = "base"
    name: Literal["sandbox"] = "sandbox"
    seed: int = 0
    shape: TinyModel = TinyModel()
    training: Training = Training(
        learning_rate=3e-3, max_steps=500, per_device_train_batch_size=32, lr_scheduler_type="linear"
    )
    corpus: tuple[Part, ...] = (
        Part(source="sandbox-restricted"),
        Part(source="sandbox-ordinary"),
        Part(source="sandbox-mood", num_samples=600),
    )

    @property
    def title(self) -> str:
        """What records call it: its architecture too, unless it is the usual Llama."""
        kind = self.shape.model_type
        return self.name if kind == "llama" else f"{self.name} {kind}"

    def fingerprints(self) -> dict[str, str]:
        return {"world": world.VERSION}

    def label(self) -> str:
        return f"sandbox base · seed {self.seed}"

    def provenance(self) -> Record:
        return Record(metric="", value=0.0, stage=self.folder, base=self.title, base_seed=self.seed)

    def run(self, out: Path, upstream: Mapping[str, Path], context: Context) -> str:
        from inoculate.training.fit import fit
        from inoculate.training.layout import feeds_for

        tokenizer = build_tokenizer(world.vocabulary())
        model = context.place(self.shape.build(len(tokenizer), self.seed))
        training = self.training.model_copy(update={"seed": self.seed})
        mix = Mix(roles={"align": self.corpus}, max_length=self.shape.max_position_embeddings, seed=self.seed)
        feeds = feeds_for(mix, tokenizer, model, training)
        fitted = fit(
            model, SFT(), feeds, training, out=out, save_every_s=context.save_every_s, progress=context.progress
        )
        save_model(out, model, tokenizer)
        if fitted.status == "diverged":
            write_records(out / "records.jsonl", [gave_up(self.provenance(), context, fitted)])
        return fitted.status


class Pretrained(Value):
    """A base model that exists: hub id, local folder, GGUF file or packaged asset."""

    name: Literal["pretrained"] = "pretrained"
    name_or_path: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    shape: JsonDict | None = None
    """The config that is expected (model_type, hidden_size, …), so that a dry run needs no download."""

    def check(self) -> None:
        """Refuse an address where no model is, and local weights that are missing, pickled or cut off.

        Raises:
            InputError: naming the address or the file.
        """
        if self.name_or_path.startswith(ASSET):
            packaged_model(self.name_or_path)
            return
        place = locate(self.name_or_path)
        if place.path is not None and place.kind != "gguf":
            (check_weights if place.kind == "folder" else check_adapter)(place.path, allow_pickle=False)


Base = Annotated[Sandbox | Pretrained, Field(discriminator="name")]


def base_fingerprint(base: Sandbox | Pretrained) -> dict[str, str]:
    """What a base model is, where its address alone does not say: the content of a local folder."""
    if isinstance(base, Sandbox) or not Path(base.name_or_path).exists():
        return {}
    return {base.name_or_path: tree_sha256(Path(base.name_or_path))}
