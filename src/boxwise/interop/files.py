"""Weights as files that hold no code: safetensors out; safetensors and restricted pickles in."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from boxwise.interop.keys import (
    COUNTER,
    PARTS,
    MatchReport,
    State,
    arrange,
    detector_names,
    match,
    starts_at_c3,
)

MODEL, CARD = "model.safetensors", "config.json"
ACCEPTED = "a run folder, its export folder, a .safetensors file, or a .pth of torchvision or timm"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FPN_LEVELS = ("p2", "p3", "p4", "p5")
NESTS = ("state_dict", "model", "model_state_dict", "state_dict_ema")
"""Where training scripts keep the weights inside a checkpoint."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Backbone, FPN and box head read from a file."""

    source: str
    state: State
    """Tensors on the CPU under the names of torchvision's detectors."""
    config: Mapping[str, Any]
    """What lies beside the weights: `encoder`, `mean`, `std` and more; empty for a bare file."""
    digest: str | None = None
    """Of the bytes of the file, wherever it lies."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Which of backbone, fpn and head are held."""
        return tuple(p for p, prefix in PARTS.items() if any(n.startswith(prefix) for n in self.state))

    @property
    def partial(self) -> tuple[str, ...]:
        """Which of them are only as much as was trained: an FPN of some levels."""
        levels = self.config.get("encoder", {}).get("fpn_levels", FPN_LEVELS)
        return () if [*levels] == [*FPN_LEVELS] else ("fpn",)

    @property
    def mean(self) -> tuple[float, float, float]:
        """RGB in 0..1 that inputs are normalised by; ImageNet's where the file does not say."""
        return _rgb(self.config, "mean", IMAGENET_MEAN, self.source)

    @property
    def std(self) -> tuple[float, float, float]:
        """RGB in 0..1 that inputs are normalised by; ImageNet's where the file does not say."""
        return _rgb(self.config, "std", IMAGENET_STD, self.source)

    def only(self, parts: Collection[str] | None) -> Weights:
        """As if nothing but these parts had been trained; none: all. Raises ValueError where nothing is left."""
        if parts is None:
            return self
        if not {*parts} & {*self.parts}:
            raise ValueError(
                f"{self.source}: holds {', '.join(self.parts)} and none of weights.parts ({', '.join(parts)}): "
                "name what is to arrive"
            )
        kept = tuple(PARTS[part] for part in parts)
        encoder = dict(self.config.get("encoder", {}))
        if "fpn" not in parts:
            encoder = {key: value for key, value in encoder.items() if not key.startswith("fpn")}
        state = {name: tensor for name, tensor in self.state.items() if name.startswith(kept)}
        return replace(self, state=state, config={**self.config, "encoder": encoder})

    def match(self, modules: Mapping[str, nn.Module]) -> MatchReport:
        """What `into` would do, without doing it."""
        return match(self.state, modules, source=self.source, partial=self.partial)

    @torch.no_grad()
    def into(self, modules: Mapping[str, nn.Module]) -> MatchReport:
        """Copies every tensor that matches in name and shape; the report tells what did, and can insist."""
        report = self.match(modules)
        for part, module in modules.items():
            given, own = arrange(self.state, part, modules), module.state_dict()
            taken = set(report.parts[part].matched)
            for name, tensor in own.items():
                if name in taken or (name.endswith(COUNTER) and name in given):
                    tensor.copy_(given[name])
        return report


def pixels(weights: Weights | None) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation that inputs are normalised by; ImageNet's for random weights."""
    return (IMAGENET_MEAN, IMAGENET_STD) if weights is None else (weights.mean, weights.std)


def save_weights(folder: Path, modules: Mapping[str, nn.Module], config: Mapping[str, Any]) -> Path:
    """Writes `modules` (backbone, where trained fpn and head) and what a detector must know.

    Names are those of torchvision's Faster R-CNN, so `torchvision_model.load_state_dict(load_file(...),
    strict=False)` works without boxwise.
    """
    assert set(modules) <= set(PARTS), f"unknown parts: {set(modules) - set(PARTS)}"
    state = {PARTS[p] + n: t for p, module in modules.items() for n, t in module.state_dict().items()}
    return write_state(folder, state, {**config, "parts": list(modules)})


def write_state(folder: Path, state: State, config: Mapping[str, Any]) -> Path:
    """Tensors to `folder`/model.safetensors, `config` to config.json, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    # channels_last weights are not contiguous, and tied ones share memory: safetensors takes neither
    plain = {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in state.items()}
    _whole(folder / MODEL, lambda file: _save(plain, file))
    card = json.dumps({"format": 1, **config}, indent=2) + "\n"
    _whole(folder / CARD, lambda file: file.write_text(card, encoding="utf-8"))
    return folder


def load_weights(path: Path | str) -> Weights:
    """Reads backbone, FPN and box head: a run or export folder, or a file of ours, torchvision's or timm's.

    Classifier layers are dropped. Pickles are read without running any code in them. Raises ValueError for
    what cannot be read, or holds numbers that are not finite.
    """
    file = find_model(Path(path))
    held, card = read_state(file), _card_beside(file)
    if isinstance(detector := card.get("detector"), dict):
        card = {"encoder": _trunk(detector), **card}
    if starts_at_c3(held):
        card = {**card, "encoder": {**card.get("encoder", {}), "fpn_levels": FPN_LEVELS[1:]}}
    digest = hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
    return Weights(str(path), detector_names(held), card, digest)


def find_model(path: Path) -> Path:
    """The weights file that `path`, a file or a folder, means."""
    if path.is_file():
        return path
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; weights are {ACCEPTED}")
    for file in (path / "export" / MODEL, path / MODEL):
        if file.is_file():
            return file
    if (path / "run.json").is_file():
        raise ValueError(f"{path}: this run has not exported its weights; finish it with --resume")
    raise ValueError(f"{path}: holds no {MODEL}; weights are {ACCEPTED}")


def read_state(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, or of a pickle read under `weights_only=True`."""
    state = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
    if not state:
        raise ValueError(f"{file}: holds no weights; weights are {ACCEPTED}")
    bad = [n for n, t in state.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise ValueError(f"{file}: {len(bad)} tensors are not finite, the first is {bad[0]}")
    return state


def read_card(folder: Path) -> dict[str, Any]:
    """The config.json that lies beside weights; ValueError where it is absent or not one."""
    file = folder / CARD
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder}: holds no {CARD}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: is not JSON ({error})") from None
    if not isinstance(card, dict):
        raise ValueError(f"{file}: expected settings by name")
    return card


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file}: is not a whole safetensors file ({error})") from None


def _read_pickle(file: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickles that it then refuses
            value = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{file}: is no file of plain tensors; a pickle may run code, so nothing else in it is read. "
            "Save its state_dict alone, best as .safetensors"
        ) from None
    except (RuntimeError, EOFError, OSError, KeyError) as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{file}: cannot be read as weights ({why})") from None
    for nest in NESTS:
        if isinstance(value, dict) and isinstance(value.get(nest), dict):
            value = value[nest]
    if not isinstance(value, dict):
        raise ValueError(f"{file}: expected named tensors, found {type(value).__name__}")
    return {name: tensor for name, tensor in value.items() if isinstance(tensor, Tensor)}


def _card_beside(file: Path) -> dict[str, Any]:
    """Our own config.json, or what timm's tells; nothing where there is none, or a stranger's."""
    if file.suffix not in (".safetensors", ".bin") or not (file.parent / CARD).is_file():
        return {}
    card = read_card(file.parent)
    if "architecture" in card:
        pixels = card.get("pretrained_cfg", {})
        known = {k: pixels[k] for k in ("mean", "std") if k in pixels}
        return {"encoder": {"backbone": card["architecture"]}, **known}
    return card if "format" in card else {}


def _trunk(detector: Mapping[str, Any]) -> dict[str, Any]:
    """What the settings of a detector that was fine-tuned say of its backbone and FPN."""
    known = {key: detector[key] for key in ("backbone", "fpn_channels", "fpn_norm") if key in detector}
    return {**known, "fpn": "fpn_channels" in detector}


def _rgb(
    config: Mapping[str, Any], key: str, default: tuple[float, float, float], source: str
) -> tuple[float, float, float]:
    value = config.get(key, default)
    rgb = isinstance(value, list | tuple) and len(value) == 3
    if not (rgb and all(isinstance(v, int | float) for v in value)):
        raise ValueError(f"{source}: {key} in {CARD} must be three numbers, got {value!r}")
    return float(value[0]), float(value[1]), float(value[2])


def _save(state: dict[str, Tensor], file: Path) -> None:
    try:
        save_file(state, file, metadata={"format": "pt"})
    except SafetensorError as error:  # what it calls a full disk
        raise OSError(
            f"{file.parent}: the weights cannot be written ({error}); make room on the disk"
        ) from None


def _whole(file: Path, write: Callable[[Path], Any]) -> None:
    """Writes beside `file`, flushes to the disk, then renames: a reader sees the old file or the new one."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        write(beside)
        with beside.open("rb+") as written:
            os.fsync(written.fileno())
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)
