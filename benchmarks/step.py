"""A training step beside the bare backbone passes that its method cannot do without, and where the rest goes.

    python benchmarks/step.py [--methods scrl ...] [--backbone resnet50] [--image-size 224] [--batch 16] [--out]

Bare: the method's own passes through a backbone without anything else, on the same images in the same groups:
student forward and backward, teacher forward. A step: forward, backward, gradient norm, optimiser, teacher. Parts
are timed alone, forward and backward, on what they were given within a step; "rest" is what is left of the step, and
may come out below 0. Bare, step and parts take turns within each round. Each figure is the quickest over rounds: what
else a machine has to do makes a piece of work slower, never quicker. Shares on top are those of the quickest, and in
brackets of the second quickest: where the two are far apart, the machine was not quiet enough.

`soco_used` is SoCo with `method.statistics: used`: what its exact statistics cost.

A method that pretrains an FPN and a box head cannot do without their passes either: the second share is on top of
all that a detector takes over, which is bare, fpn and box head.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from boxwise.engine.device import device_of, dtype_of
from boxwise.engine.optim import build_optimiser
from boxwise.geometry.views import Batch
from boxwise.methods.base import Method
from boxwise.recipes.pretrain import METHODS
from boxwise.recipes.recipe import Recipe
from boxwise.run.memory import blank_batch
from boxwise.run.pretrain import build
from result import RESULTS, machine, save, system_load

PARTS = ("fpn", "box head", "regions", "pooling", "heads", "loss", "optimiser", "teacher")
HANDED_OVER = ("bare", "fpn", "box head")
CASES = METHODS | {"soco_used": lambda: METHODS["soco"]().changed({"method.statistics": "used"})}
"""Recipes by the name of their row: the short names, and SoCo when it pools only what its loss uses."""
OBJECTIVES = ("cosine_distance", "info_nce", "matched_cosine", "negative_cosine")
Work = Callable[[], object]
Autocast = Callable[[], AbstractContextManager[Any]]


class Heard:
    """Every call of a module or function within one step: what it was given, and whether a gradient was wanted."""

    def __init__(self) -> None:
        self.calls: dict[str, list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], bool]]] = {}

    def note(self, part: str, call: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> None:
        kept = args, named, torch.is_grad_enabled()
        self.calls.setdefault(part, []).append((call, *kept))

    @contextlib.contextmanager
    def listening(self, method: Method) -> Iterator[None]:
        hooks = [
            module.register_forward_pre_hook(
                lambda module, args, named, part=part: self.note(part, module, args, named), with_kwargs=True
            )
            for part, module in modules(method)
        ]
        home = sys.modules[type(method).__module__]
        own = {name: getattr(home, name) for name in OBJECTIVES if hasattr(home, name)}
        for name, objective in own.items():
            setattr(home, name, self._noting(objective))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for name, objective in own.items():
                setattr(home, name, objective)

    def again(self, part: str, autocast: Autocast, *, gradient_from: str | None = None) -> Work:
        """All calls of `part` once more: forward, and backward where the step had one."""
        calls = [
            (call, *leaves(args, named, wanted), wanted)
            for call, args, named, wanted in self.calls.get(part, [])
        ]

        weights = [p for call, *_ in calls if isinstance(call, nn.Module) for p in call.parameters()]

        def work() -> None:
            for weight in weights:  # as a step begins
                weight.grad = None
            for call, args, named, wanted in calls:
                with torch.set_grad_enabled(wanted), autocast():
                    made = tensors(call(*args, **named))
                if gradient_from == "last":
                    made = made[-1:]
                if reached := [x for x in made if x.requires_grad]:
                    torch.autograd.backward(reached, [torch.ones_like(x) for x in reached])

        return work

    def _noting(self, objective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            self.note("loss", objective, args, named)
            return objective(*args, **named)

        return call


def modules(method: Method) -> Iterator[tuple[str, nn.Module]]:
    """The parts of student and teacher, by the row of the table that they count for."""
    teacher = getattr(method, "teacher", None)
    for branch in [method.student, *([] if teacher is None else [teacher.network])]:
        yield "bare", branch.encoder.body
        if branch.encoder.fpn is not None:
            yield "fpn", branch.encoder.fpn
        for tap in branch.taps.values():
            yield "pooling", tap.pool
            yield "heads", tap.project
            if tap.box_head is not None:
                yield "box head", tap.box_head
    if isinstance(predictor := getattr(method, "predictor", None), nn.Module):
        yield "heads", predictor


def leaves(
    args: tuple[Any, ...], named: dict[str, Any], wanted: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a call was given, cut from its history; the first argument wants a gradient if it had one."""
    first, *others = (cut(value, wanted and i == 0) for i, value in enumerate(args))
    return (first, *others), {name: cut(value, False) for name, value in named.items()}


def cut(value: Any, wanted: bool) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(wanted and value.requires_grad)
    if isinstance(value, Mapping):
        return {name: cut(inner, wanted) for name, inner in value.items()}
    return value


def tensors(made: Any) -> list[Tensor]:
    if isinstance(made, Tensor):
        return [made]
    return [x for inner in (made.values() if isinstance(made, Mapping) else made) for x in tensors(inner)]


def works(recipe: Recipe, device: torch.device) -> dict[str, Work]:
    """What is timed: "step", "bare" and the parts."""
    method, batch = ready(recipe, device)
    dtype = dtype_of(recipe.run.precision, device)

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)

    descent = build_optimiser(method, recipe.optim, lr=1e-4, constant_lr=method.constant_lr)
    trained = [p for group in descent.param_groups for p in group["params"]]
    ok, count = torch.ones((), device=device), iter(range(10**9))

    def step() -> None:
        descent.zero_grad()
        with autocast():
            loss = method(batch)["loss"]
        loss.backward()
        torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        descent.step_if(ok)
        method.after_step(next(count), 10**9, ok=ok)

    heard = Heard()
    with heard.listening(method), autocast():
        method(batch)
    step()
    parts = {part: heard.again(part, autocast) for part in ("fpn", "box head", "pooling", "heads", "loss")}
    last = "last" if recipe.encoder.fpn is False else None  # a pyramid sends gradients to every level
    return {
        "step": step,
        "bare": heard.again("bare", autocast, gradient_from=last),
        "regions": lambda: method.pairs(batch),
        **parts,
        "optimiser": lambda: descent.step_if(ok),
        "teacher": lambda: method.after_step(0, 10**9, ok=ok),
    }


def ready(recipe: Recipe, device: torch.device) -> tuple[Method, Batch]:
    """A method as a run trains it, and a batch of noise whose views overlap."""
    method = build(recipe).to(device)
    if recipe.run.channels_last:
        method.to(memory_format=torch.channels_last)
    batch = blank_batch(
        recipe.views, recipe.method.draws(), count=recipe.run.batch_size, objects=recipe.method.objects
    )
    batch = batch.to(device)
    for view in batch.views:
        view.image.data = view.image.contiguous(memory_format=torch.channels_last)
    return method, batch


def measure(recipe: Recipe, device: torch.device, *, rounds: int) -> list[dict[str, float]]:
    """Seconds of each, round by round; two rounds before them only warm up."""
    timed, seen = works(recipe, device), []
    for _ in range(rounds + 2):
        seconds = {}
        for name, work in timed.items():
            wait(device)
            began = time.perf_counter()
            work()
            wait(device)
            seconds[name] = time.perf_counter() - began
        seen.append(seconds)
    return seen[2:]


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def row(name: str, rounds: list[dict[str, float]]) -> str:
    first, second = nth_quickest(rounds, 0), nth_quickest(rounds, 1)
    rest = first["step"] - sum(first[key] for key in ("bare", *PARTS))
    shares = [
        f"{on_top(first, *passes):+.0%} ({on_top(second, *passes):+.0%})"
        for passes in (("bare",), HANDED_OVER)
    ]
    cells = [f"{1e3 * seconds:.1f}" for seconds in (*(first[key] for key in ("step", "bare", *PARTS)), rest)]
    return f"| {name} | " + " | ".join([*shares, *cells]) + " |"


def nth_quickest(rounds: list[dict[str, float]], n: int) -> dict[str, float]:
    """Of each piece of work by itself, the seconds of its `n`-th quickest round, from 0."""
    return {key: sorted(r[key] for r in rounds)[n] for key in rounds[0]}


def on_top(seconds: dict[str, float], *passes: str) -> float:
    """What a step takes beside these parts of it, as a share of them."""
    return seconds["step"] / sum(seconds[key] for key in passes) - 1


def table(rows: list[str]) -> str:
    names = ["method", "on top of bare", "of what is handed over", "step", "bare", *PARTS, "rest"]
    return "\n".join(["| " + " | ".join(names) + " |", "|---" + "|---:" * (len(names) - 1) + "|", *rows])


def report(given: argparse.Namespace, device: torch.device, rows: list[str], *, load: float) -> str:
    return f"""# A training step beside its bare backbone passes

{datetime.date.today()}, {machine(device)}, {os.cpu_count()} cores, load {load:.1f} before the start.
torch {torch.__version__}, {torch.get_num_threads()} threads, Python {platform.python_version()}. {given.backbone},
{given.batch} images of {given.image_size} px in two views, {dtype_of(given.precision, device)},
the quickest of {given.rounds} rounds; shares in brackets are from the second quickest. Milliseconds.

{table(rows)}

Bare is the student's forward and backward and the teacher's forward through the backbone alone; handed over are
backbone, FPN and box head. Made by `python benchmarks/step.py`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16, help="images a step")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", nargs="?", type=Path, const=RESULTS, help="a folder for the dated result")
    given = parser.parse_args()
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    device, load = device_of(given.device), system_load()
    rows = []
    for name in given.methods:
        flags = {"backbone": given.backbone, "image_size": given.image_size, "batch_size": given.batch}
        recipe = CASES[name]().changed({**flags, "precision": given.precision})
        rows.append(row(name, measure(recipe, device, rounds=given.rounds)))
        print(rows[-1], file=sys.stderr, flush=True)
    text = report(given, device, rows, load=load)
    print(text)
    if given.out is not None:
        save(text, "step", given.out, device)


if __name__ == "__main__":
    main()
