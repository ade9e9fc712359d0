"""`boxwise compare`: one detector from several starts, all else locked, at several shares of the labels."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache as kept
from pathlib import Path
from typing import Any

import torch

from boxwise.data.kept import decode_all, decoded_bytes, held
from boxwise.data.splits import labelled_splits
from boxwise.engine.atomic import read_json, write_json, write_text
from boxwise.engine.guard import Diverged
from boxwise.engine.lock import NAME as BUSY
from boxwise.engine.lock import Lock
from boxwise.engine.progress import say
from boxwise.engine.signals import ending_on_term
from boxwise.run.compare_arms import open_arms, refuse_misfits
from boxwise.run.compare_lock import LOCK, joined, lock_of, text_of
from boxwise.run.compare_plan import Cell, Plan, cells, open_shares
from boxwise.run.compare_results import CURVES, ap_by_iou, collect
from boxwise.run.detector_run import run_transfer
from boxwise.run.find import transfer_recipe
from boxwise.run.finetune import fields
from boxwise.run.memory import free_memory
from boxwise.strict import SettingsError
from boxwise.transfer.evaluate import metric_of

RESULTS, PAGE = "results.json", "compare.html"
OWN = (LOCK, RESULTS, PAGE, "runs")
"""What a comparison leaves in its folder."""
GIB = 2**30


def compare(
    data: str | Path,
    out: str | Path,
    *,
    init: Sequence[str | Path],
    labels: Sequence[float | int] | None = None,
    seeds: int = 3,
    detector: str = "faster_rcnn_fpn",
    images: Path | None = None,
    val: Path | None = None,
    config: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    cache: float = 4.0,
    overwrite: bool = False,
    dry_run: bool = False,
    after_run: Callable[[Path], object] | None = None,
) -> Path:
    """Trains `detector` from every start in `init` at every share in `labels` with every seed; returns `out`.

    Without `labels`, the detector's recipe decides: all of them, most often.
    `init` holds "random", "torchvision" (the user's own cached file), run folders and weights files. Runs that
    `out` holds are kept, one that was interrupted goes on. Figures and verdicts are in `out`/results.json after
    every run, when `after_run(out)` is called. `cache` is what decoded images may take, in GiB.
    """
    out = Path(out)
    _refuse(out, overwrite=overwrite, seeds=seeds, cache=cache)
    plan = planned(
        data,
        out,
        init=init,
        labels=labels,
        seeds=seeds,
        detector=detector,
        images=images,
        val=val,
        config=config,
        settings=settings or {},
    )
    lock = text_of(plan.lock if overwrite else joined(out, plan.lock))
    if dry_run:
        print(lock + plan.listing(fresh=overwrite))
        return out
    out.mkdir(parents=True, exist_ok=True)
    busy = Lock(out)
    try:
        with ending_on_term():  # between two runs; within them it is a run's own
            if overwrite:
                _empty(out)
            write_text(out / LOCK, lock)
            say(f"everything but the initial weights is locked:\n{lock}")
            _run_all(_in_memory(plan, limit=cache), out, after_run)
    finally:
        busy.release()
    return out


def planned(
    data: str | Path,
    out: Path,
    *,
    init: Sequence[str | Path],
    labels: Sequence[float | int] | None,
    seeds: int,
    detector: str,
    images: Path | None,
    val: Path | None,
    config: Path | None,
    settings: Mapping[str, Any],
) -> Plan:
    """Opens, draws and checks everything that can be known to fail before the first step."""
    found = transfer_recipe(detector, config=config, settings=settings)
    run = found.recipe.run
    if run.devices * run.nodes > 1:
        raise SettingsError([f"run.devices: compare trains on one device, not on {run.devices * run.nodes}"])
    arms, recipe = open_arms(init, found.recipe, found.given)
    train, test = labelled_splits(
        data, images=images, val=val, max_value=recipe.data.max_value, extras=fields(recipe)
    )
    brought = refuse_misfits(arms, recipe, classes=len(recipe.detector.classes(train)))
    numbers = range(run.seed, run.seed + seeds)
    if labels is None:
        labels = [1.0 if recipe.data.labels is None else recipe.data.labels]
    shares = open_shares(labels, numbers, train, recipe, fitted=found.fitted, given=found.given)
    lock = lock_of(recipe, found.source, arms, brought, shares, train, test)
    return Plan(cells(arms, shares, numbers, out), found.source, lock, train, test)


def _refuse(out: Path, *, overwrite: bool, seeds: int, cache: float) -> None:
    problems = []
    if seeds < 1:
        problems.append(f"--seeds: expected 1 or more, got {seeds}")
    if cache < 0:
        problems.append(f"--cache: expected GiB from 0 (none), got {cache:g}")
    if problems:
        raise SettingsError(problems)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file; choose a folder for the comparison")
    inside = [p.name for p in out.iterdir() if not p.name.startswith(BUSY)] if out.exists() else []
    if inside and LOCK not in inside and not all(name.endswith(".tmp") for name in inside):
        listed = ", ".join(sorted(inside)[:4])
        raise ValueError(f"{out}: not empty, and no comparison of boxwise ({listed}); choose another folder")


def _empty(out: Path) -> None:
    for name in OWN:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _in_memory(plan: Plan, *, limit: float) -> Plan:
    """The plan with every image that its open runs need decoded once, where all of them fit."""
    if not plan.open:
        return plan
    rows = sorted({int(row) for cell in plan.open for row in cell.share.drawn[cell.seed].index})
    train = plan.train.subset(rows)
    need = decoded_bytes(train) + decoded_bytes(plan.test)
    room = min(limit * GIB, free_memory(torch.device("cpu")) / 2)
    size = f"{need / GIB:.2f} GiB of decoded images"
    if need > room:
        say(f"{size} do not fit into {room / GIB:.2f} GiB (--cache): every run decodes them again")
        return plan
    say(f"decoding {len(train) + len(plan.test)} images once for all runs: {size}")
    pixels = decode_all(train)
    shares = {
        cell.share.label: replace(
            cell.share, drawn={seed: held(drawn, pixels) for seed, drawn in cell.share.drawn.items()}
        )
        for cell in plan.cells
    }
    from_memory = [replace(cell, share=shares[cell.share.label]) for cell in plan.cells]
    return replace(plan, cells=from_memory, test=held(plan.test, decode_all(plan.test)))


def _run_all(plan: Plan, out: Path, after_run: Callable[[Path], object] | None) -> None:
    """Trains what is open. Raises Diverged, once all others have run, where a run's loss left the numbers."""
    total, waiting = len(plan.cells), plan.open
    say(f"{total} runs, {total - len(waiting)} of them done")
    truth = kept(plan.test.coco)
    left, done, began = sum(cell.share.steps for cell in waiting), 0, time.monotonic()
    for cell in waiting:
        say(f"run {plan.cells.index(cell) + 1} of {total}: {cell}{_time_left(done, left - done, began)}")
        try:
            _train(cell, plan)
        except Diverged as error:
            say(f"{cell}: {error}; it counts as not measured")
        done += cell.share.steps
        _write(plan, out, truth, after_run)
    _write(plan, out, truth, after_run)
    if lost := [cell for cell in plan.cells if cell.state == "diverged"]:
        raise Diverged(f"{out}: diverged, and not measured: {'; '.join(map(str, lost))}; try a lower --lr")


def _train(cell: Cell, plan: Plan) -> None:
    for _, curve in CURVES.values():
        (cell.folder / curve).unlink(missing_ok=True)  # of other detections
    run_transfer(
        cell.recipe,
        cell.share.drawn[cell.seed],
        plan.test,
        cell.folder,
        origin=plan.source,
        weights=cell.arm.weights,
        resume=cell.folder.exists(),
    )


def _write(
    plan: Plan, out: Path, truth: Callable[[], Mapping[str, Any]], after_run: Callable[[Path], object] | None
) -> None:
    metric = metric_of(plan.cells[0].recipe.measure, plan.test)
    for cell in plan.cells:
        detections, kinds = cell.folder / "detections.json", cell.recipe.detector.kinds()
        for kind, (_, name) in CURVES.items():
            curve = cell.folder / name
            if cell.state == "finished" and kind in kinds and not curve.is_file():
                write_json(curve, ap_by_iou(truth(), read_json(detections), kind, metric=metric))
    write_json(out / RESULTS, collect(plan.cells))
    if after_run is not None:
        after_run(out)


def _time_left(done: int, left: int, began: float) -> str:
    """By the pace of the steps so far, with all that runs spend beside them."""
    if not done:
        return ""
    seconds = (time.monotonic() - began) / done * left
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"; about {seconds / size:.1f} {unit} left"
    return f"; about {seconds:.0f} s left"
