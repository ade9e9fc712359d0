"""The loop against loops written out, and all the ways in which a run may end."""

from __future__ import annotations

import copy
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy_task import Toy, ToyTask, batch_of, fresh, loads, open_folder, train

from boxwise.config import SGD, Run, Schedule
from boxwise.engine import checkpoint, device, steps
from boxwise.engine.folder import read_json
from boxwise.engine.health import FIGURES
from boxwise.engine.loop import Diverged, fit
from boxwise.engine.metrics import read_rows

DOUBLE = torch.float64


def same(a: nn.Module, b: nn.Module, **tolerance: float) -> None:
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(
            x, y, msg=lambda m, n=name: f"{n}: {m}", **(tolerance or {"rtol": 0, "atol": 0})
        )


def timeless(path: Path) -> list[dict[str, Any]]:
    rows = read_rows(path / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def written_out(module: Toy, *, total: int, clip: float | None = None) -> list[float]:
    """The training that `train` with its defaults asks for, without any of the engine."""
    trained = list(module.student.parameters())
    optimiser = torch.optim.SGD(trained, lr=1.0, momentum=0.9, weight_decay=1e-3, foreach=False)
    norms = []
    for step in range(total):
        optimiser.param_groups[0]["lr"] = (
            0.3 * min(1, step / 3) if step <= 3 else 0.3 * fall((step - 3) / (total - 3))
        )
        optimiser.zero_grad()
        module(batch_of(step, dtype=DOUBLE))["loss"].backward()
        norms.append(float(torch.cat([p.grad.flatten() for p in trained]).norm()))
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(trained, clip)
        optimiser.step()
        with torch.no_grad():
            for t, s in zip(module.teacher.parameters(), trained, strict=True):
                t.mul_(0.9).add_(s, alpha=0.1)
    return norms


def fall(share: float) -> float:
    return float(0.5 * (1 + torch.cos(torch.tensor(torch.pi * share, dtype=DOUBLE))))


@pytest.mark.parametrize("clip", [None, 0.05])
def test_the_loop_is_the_loop_written_out(tmp_path: Path, clip: float | None) -> None:
    """Breaks when rate, decay, clipping, teacher or their order change, or the clipped norm is recorded."""
    ours, theirs = fresh(noise=0).double(), fresh(noise=0).double()
    result = train(tmp_path, ToyTask(ours), feed=loads(20, dtype=DOUBLE), clip_norm=clip, log_every=1)
    norms = written_out(theirs, total=20, clip=clip)
    same(ours, theirs, rtol=1e-10, atol=1e-12)
    assert [row["train/grad_norm"] for row in timeless(tmp_path)] == pytest.approx(norms, rel=1e-5)
    assert result.step == 20 and result.figures["train/loss"] == timeless(tmp_path)[-1]["train/loss"]


def test_parts_add_up_to_the_step(tmp_path: Path) -> None:
    """Breaks when the loss of a part is not divided, or the teacher moves once per part."""
    settings = {"norm": False, "noise": 0, "push": False}
    whole, parts = fresh(**settings).double(), fresh(**settings).double()
    train(tmp_path / "1", ToyTask(whole), feed=loads(20, dtype=DOUBLE))
    task = ToyTask(parts)
    train(tmp_path / "4", task, feed=loads(20, accumulate=4, dtype=DOUBLE), accumulate=4)
    same(whole, parts, rtol=1e-11, atol=1e-13)
    assert [step for step, _ in task.seen] == list(range(20))
    for a, b in zip(timeless(tmp_path / "1"), timeless(tmp_path / "4"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_rows_hold_what_users_plot(tmp_path: Path) -> None:
    train(tmp_path, ToyTask(fresh()), log_every=8)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["epoch"]) for row in rows] == [(1, 0.2), (8, 1.6), (16, 3.2), (20, 4.0)]
    expected = {
        "step",
        "epoch",
        "train/loss",
        "train/loss_near",
        "train/loss_far",
        "train/lr",
        "train/grad_norm",
    }
    assert all(
        row.keys() == expected | {"train/ema_momentum", "time/data_wait", "time/images_per_s"} for row in rows
    )
    assert all(0 <= row["time/data_wait"] <= 1 and row["time/images_per_s"] > 0 for row in rows)
    assert all(
        row["train/loss"] == pytest.approx(row["train/loss_near"] + row["train/loss_far"]) for row in rows
    )
    assert list(tmp_path.glob("events.out.tfevents.*"))
    assert "step 16  loss" in (tmp_path / "train.log").read_text()
    assert read_json(tmp_path / "run.json")["step"] == 20


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        ({"far": float("nan")}, "step 7: loss term far is nan;"),
        ({"near": float("inf")}, "step 7: loss term near is inf;"),
        ({"gradient": 1.0}, "step 7: the loss is finite but the gradient's norm is"),
    ],
)
def test_a_number_that_is_not_finite_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: dict[str, float], named: str
) -> None:
    """Weights, momentum and teacher stay as before the bad step, whatever follows until the reading."""
    built: list[Any] = []

    def build(*args: Any, **options: Any) -> Any:
        built.append(original(*args, **options))
        return built[0]

    original = steps.build_optimiser
    monkeypatch.setattr(steps, "build_optimiser", build)
    module, kept = fresh(push=False), {}

    def before(step: int) -> None:
        if step == 6:
            kept["module"] = copy.deepcopy(module)
            kept["momentum"] = copy.deepcopy(built[0].state_dict()["state"])
        module.spoil = spoil if step == 6 else {}

    task = ToyTask(module, before)
    with pytest.raises(Diverged, match=named) as stopped:
        train(tmp_path, task, log_every=10)
    for part in ("student", "teacher"):
        for a, b in zip(getattr(module, part).parameters(), getattr(kept["module"], part).parameters()):
            assert torch.equal(a, b)
    for i, state in built[0].state_dict()["state"].items():
        assert torch.equal(state["momentum_buffer"], kept["momentum"][i]["momentum_buffer"])
    assert [float(ok) for _, ok in task.seen] == [1.0] * 6 + [0.0] * 4
    assert [p.name for p in checkpoint.found(tmp_path / "checkpoints")] == ["step-00000005.pt"]
    assert str(tmp_path / "checkpoints" / "step-00000005.pt") in str(stopped.value)
    assert stopped.value.exit_code == 3
    assert read_json(tmp_path / "run.json")["status"] == "diverged"


def test_no_checkpoint_is_written_before_the_guard_is_read(tmp_path: Path) -> None:
    module = fresh()

    def before(step: int) -> None:
        module.spoil = {"far": float("nan")} if step == 3 else {}

    with pytest.raises(Diverged, match="step 4: loss term far is nan; no checkpoint had been written"):
        train(tmp_path, ToyTask(module, before), log_every=100, save_every=5)
    assert checkpoint.found(tmp_path / "checkpoints") == []


def test_a_parameter_without_gradient_is_named_at_step_1(tmp_path: Path) -> None:
    module = fresh()
    module.spare = nn.Linear(2, 2)
    task = ToyTask(module)
    with pytest.raises(ValueError, match=r"2 trainable parameters(?s:.*)spare.weight\n  spare.bias"):
        train(tmp_path, task)
    assert task.seen == [] and read_json(tmp_path / "run.json")["status"] == "failed"


class HostReads(TorchDispatchMode):
    """Counts the reads of a device's number by the host: what `item`, `float` and `if` do to a tensor."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_step_never_waits_for_the_device(tmp_path: Path) -> None:
    """Twin of the check with CUDA's own alarm below; breaks with any item(), float() or if on a tensor."""
    counts: list[int] = []
    with HostReads() as reads:
        float(torch.ones(()) + 1)
        train(tmp_path, ToyTask(fresh(), lambda step: counts.append(reads.count)), log_every=9, clip_norm=1.0)
    assert counts == [1] * 20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_step_never_waits_for_cuda(tmp_path: Path) -> None:
    def before(step: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if 2 <= step < 18 else "default")

    train(tmp_path, ToyTask(fresh(), before), log_every=100, save_every=100, device="cuda", clip_norm=1.0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("at", [0, 6, 9])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, number: int, code: int, at: int) -> None:
    """Breaks when weights, BatchNorm, teacher, queue, momentum, means or draws are not carried over."""
    calm, stopped, resumed = fresh(), fresh(), fresh()
    train(tmp_path / "calm", ToyTask(calm))

    def before(step: int) -> None:
        if step == at:
            os.kill(os.getpid(), number)

    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(SystemExit) as ended:
        train(tmp_path / "run", ToyTask(stopped, before))
    assert ended.value.code == code and read_json(tmp_path / "run" / "run.json")["status"] == "interrupted"
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert checkpoint.found(tmp_path / "run" / "checkpoints")[0].name == f"step-{at + 1:08d}.pt"
    torch.manual_seed(5)
    with torch.no_grad():
        for t in resumed.state_dict().values():
            t.zero_()
    result = train(tmp_path / "run", ToyTask(resumed), resume=True)
    same(calm, resumed)
    assert timeless(tmp_path / "run") == timeless(tmp_path / "calm")
    assert result.step == 20 and read_json(tmp_path / "run" / "run.json")["status"] == "finished"
    last = [torch.load(tmp_path / name / "checkpoints/step-00000020.pt") for name in ("calm", "run")]
    for a, b in zip(*(state["optimiser"]["state"].values() for state in last)):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])


def test_a_finished_run_resumes_to_its_end(tmp_path: Path) -> None:
    first, again = fresh(), fresh()
    train(tmp_path, ToyTask(first))
    rows = (tmp_path / "metrics.jsonl").read_text()
    result = train(tmp_path, ToyTask(again), resume=True)
    same(first, again)
    assert result.step == 20 and (tmp_path / "metrics.jsonl").read_text() == rows


def test_a_damaged_checkpoint_costs_steps_but_not_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calm, resumed = fresh(), fresh()
    train(tmp_path, ToyTask(calm))
    rows = timeless(tmp_path)
    newest = tmp_path / "checkpoints" / "step-00000020.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    task = ToyTask(resumed)
    train(tmp_path, task, resume=True)
    assert [step for step, _ in task.seen] == [15, 16, 17, 18, 19]
    same(calm, resumed)
    assert timeless(tmp_path) == rows
    for told in (capsys.readouterr().err, (tmp_path / "train.log").read_text()):
        assert "step-00000020.pt: damaged" in told and "resumed at step 15" in told


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    train(tmp_path, ToyTask(fresh()))
    with pytest.raises(ValueError, match=r"step-00000020\.pt: is of another model"):
        train(tmp_path, ToyTask(fresh(norm=False)), resume=True)


def test_the_thread_count_comes_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        train(tmp_path, ToyTask(fresh()), threads=2)
        torch.set_num_threads(1)
        train(tmp_path, ToyTask(fresh()), resume=True)
        assert torch.get_num_threads() == 2
        train(tmp_path, ToyTask(fresh()), resume=True, threads=1)
        assert "threads: 2 before, 1 now" in (tmp_path / "train.log").read_text()
    finally:
        torch.set_num_threads(before)


def test_bf16_is_autocast_and_leaves_batches_in_float32(tmp_path: Path) -> None:
    """Breaks when Fabric's own conversion reaches the batch: boxes would be rounded to whole pixels."""
    module = fresh()
    train(tmp_path, ToyTask(module), precision="bf16", total=3)
    assert module.forwards == [(True, torch.float32)] * 3
    assert module.student[0].weight.dtype == torch.float32


def test_fp16_drops_what_overflows_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scaler's path, on the CPU: a step whose gradient overflows is skipped by weights and teacher."""
    monkeypatch.setattr(device, "dtype_of", lambda precision, device: torch.float16)
    module, snapshots = fresh(), []

    def before(step: int) -> None:
        snapshots.append(copy.deepcopy((module.student.state_dict(), module.teacher.state_dict())))
        module.spoil = {"gradient": 1.0} if step == 6 else {}

    task = ToyTask(module, before)
    train(tmp_path, task)
    kept = [float(ok) for _, ok in task.seen]
    assert kept[6] == 0 and kept[7:] == [1.0] * 13
    for part in range(2):
        for name in ("0.weight", "3.bias"):
            assert torch.equal(snapshots[6][part][name], snapshots[7][part][name])
            assert not torch.equal(snapshots[7][part][name], snapshots[8][part][name])
    scaler = checkpoint.load(checkpoint.found(tmp_path / "checkpoints")[0])["scaler"]
    assert scaler["scale"] == 2.0**16 / 2 ** kept.count(0.0)


def test_fp16_that_always_overflows_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "dtype_of", lambda precision, device: torch.float16)
    module = fresh()
    module.spoil = {"gradient": 1.0}
    with pytest.raises(Diverged, match="every gradient overflows fp16"):
        train(tmp_path, ToyTask(module), total=60, save_every=100)


def test_compile_reaches_the_named_submodules_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, dynamic: compiled.append(self))
    module = fresh()
    for wanted in (False, True):
        with open_folder(tmp_path / str(wanted)) as folder:
            fit(
                ToyTask(module),
                loads(2),
                optimiser=SGD(),
                schedule=Schedule(steps=2),
                run=Run(batch_size=8, device="cpu", compile=wanted),
                steps_per_epoch=1,
                total=2,
                folder=folder,
                compiled=[module.student],
            )
        assert compiled == [module.student] * wanted


def test_a_collapse_is_called_out_in_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Collapsed(ToyTask):
        def figures(self) -> dict[str, torch.Tensor]:
            return dict(zip(FIGURES, torch.tensor([0.001, 1.0, 1.0, 1.0])))

    train(tmp_path, Collapsed(fresh()), total=160, log_every=5, save_every=100)
    for told in (capsys.readouterr().err, (tmp_path / "train.log").read_text()):
        assert told.count("collapse: all embeddings are nearly one vector") == 1


def test_data_that_ends_early_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the data ended at step 7 of 20"):
        train(tmp_path, ToyTask(fresh()), feed=loads(7))


def test_a_batch_must_divide(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="8 images do not divide into 1 processes of 3 parts"):
        train(tmp_path, ToyTask(fresh()), accumulate=3)


def test_draws_depend_on_the_place_alone() -> None:
    def draw(*place: int) -> tuple[float, ...]:
        steps.seed_draws(*place, device=torch.device("cpu"))
        return (float(torch.rand(())), steps.random.random(), float(steps.np.random.rand()))

    places = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    drawn = [draw(*place) for place in places]
    assert [draw(*place) for place in places] == drawn
    assert all(len({d[kind] for d in drawn}) == len(places) for kind in range(3))
