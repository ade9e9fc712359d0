"""A short name is fitted to the images and the device, and every change is said."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from boxwise.config import Run
from boxwise.geometry.views import Batch
from boxwise.nn.encoder import build_encoder
from boxwise.recipes import pretrain, transfer
from boxwise.recipes.insloc import insloc_r50_fpn_200ep
from boxwise.run.find import pretrain_recipe, saved
from boxwise.run.fit import as_started, fitted, fitted_length, given_keys, on_ranks, rate
from boxwise.run.memory import blank_batch, fixed, free_memory, kept, largest_batch
from boxwise.strict import SettingsError, dump_yaml


def test_a_small_folder_gets_a_batch_a_warm_up_and_a_queue_that_fit() -> None:
    recipe, why = fitted(pretrain.mocov2_r50_200ep(), images=1000, room=10_000, on_cpu=True, given=())
    assert recipe.run.batch_size == 64 and recipe.method.queue == 448 <= 500
    assert recipe.method.queue % 64 == 0 and len(why) == 2
    assert rate(recipe) == 0.03 * 64 / 256


@pytest.mark.parametrize(("images", "batch", "queue"), [(130, 100, 65), (210, 100, 100), (3, 2, 1)])
def test_a_queue_holds_at_most_half_of_the_images(images: int, batch: int, queue: int) -> None:
    """Breaks when a batch of more than half of the images makes the queue as long, against what is said of it."""
    given = pretrain.mocov2_r50_200ep().changed({"batch_size": batch})
    recipe, why = fitted(given, images=images, room=1000, on_cpu=True, given={"run.batch_size"})
    assert recipe.method.queue == queue
    assert why[0] == f"queue 65536 -> {queue} (at most half of {images} images)"


def test_a_batch_of_composites_has_backgrounds_for_each() -> None:
    """Breaks when a small folder, or one of several parts, gets fewer images at a time than pasting needs."""
    recipe, _ = fitted(insloc_r50_fpn_200ep(), images=12, room=100, on_cpu=True, given=())
    assert recipe.run.batch_size == 4 and recipe.method.queue == 4
    split = insloc_r50_fpn_200ep().changed({"accumulate": 2})
    assert fitted(split, images=12, room=100, on_cpu=True, given=())[0].run.batch_size == 8
    with pytest.raises(SettingsError, match=r"run.batch_size: each image is pasted .* at least 6"):
        insloc_r50_fpn_200ep().changed({"accumulate": 2, "batch_size": 4})


def test_memory_bounds_the_batch() -> None:
    recipe, _ = fitted(pretrain.scrl_r50_200ep(), images=100_000, room=100, on_cpu=False, given=())
    assert recipe.run.batch_size == 64
    four = replace(pretrain.scrl_r50_200ep(), run=Run(batch_size=8192, devices=4))
    assert fitted(four, images=100_000, room=100, on_cpu=False, given=())[0].run.batch_size == 256


def test_the_published_batch_is_never_passed() -> None:
    recipe, why = fitted(pretrain.mocov2_r50_200ep(), images=10**6, room=10**6, on_cpu=False, given=())
    assert recipe == pretrain.mocov2_r50_200ep() and why == []


def test_warm_up_is_at_most_a_tenth() -> None:
    short = pretrain.scrl_r50_200ep().changed({"epochs": 20})
    recipe, why = fitted(short, images=640, room=64, on_cpu=True, given={"schedule.epochs"})
    assert (recipe.schedule.warmup_epochs, recipe.schedule.warmup_steps) == (0.0, 20)
    assert any("warm-up 100 -> 20" in line for line in why)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [({"devices": 3}, 3), ({"accumulate": 3}, 3), ({"devices": 3, "accumulate": 2, "run": {"nodes": 7}}, 42)],
)
def test_a_batch_that_is_fitted_may_be_parted_in_any_number(settings: dict[str, Any], parts: int) -> None:
    """Breaks when a short name is refused for a batch that fitting would mend, or fits one that cannot be parted."""
    found = pretrain_recipe("scrl", settings=settings)
    whole = 8192 // parts * parts
    assert found.recipe.run.batch_size == whole and found.changes[0].startswith(
        f"batch size 8192 -> {whole} ("
    )
    recipe, why = fitted(found.recipe, images=1000, room=64, on_cpu=True, given=found.given)
    assert recipe.run.batch_size == 128 // parts * parts and why[0].startswith(f"batch size {whole} -> ")
    for name, more in (("scrl", {"batch_size": 8192}), ("scrl_r50_200ep", {})):
        with pytest.raises(SettingsError, match=f"8192 is not a multiple of {parts}"):
            pretrain_recipe(name, settings={**settings, **more})


def test_every_part_of_a_batch_that_is_fitted_has_its_backgrounds() -> None:
    """Breaks when many parts leave fewer images in each than pasting needs."""
    found = pretrain_recipe("insloc", settings={"accumulate": 100})
    assert found.recipe.run.batch_size == 300
    assert fitted(found.recipe, images=9000, room=64, on_cpu=True, given=found.given)[0].run.batch_size == 400


def test_processes_that_torchrun_started_part_a_batch_that_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when three processes are refused for a batch of 256 that nobody asked for."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("WORLD_SIZE", "3")
    found = pretrain_recipe("mocov2", settings={})
    assert (found.recipe.run.devices, found.recipe.run.batch_size) == (3, 255)
    with pytest.raises(SettingsError, match="256 is not a multiple of 3"):
        pretrain_recipe("mocov2_r50_200ep", settings={})
    with pytest.raises(SettingsError, match=r"run.devices: .* got 'x'"):
        pretrain_recipe("mocov2", settings={"devices": "x"})


def test_what_the_user_set_stays() -> None:
    settings = {"batch_size": 100, "method.queue": 5000, "schedule.warmup_steps": 70, "epochs": 1}
    recipe = pretrain.mocov2_r50_200ep().changed(settings)
    given = given_keys(settings, recipe)
    assert given == {"run.batch_size", "method.queue", "schedule.warmup_steps", "schedule.epochs"}
    assert fitted(recipe, images=1000, room=64, on_cpu=True, given=given) == (recipe, [])


def test_fine_tuning_takes_as_long_as_the_data_asks() -> None:
    few, _ = fitted_length(transfer.faster_rcnn_fpn(), images=20, given=())
    many, _ = fitted_length(transfer.faster_rcnn_fpn(), images=118_000, given=())
    assert (few.schedule.steps, many.schedule.steps) == (600, 12_000)
    told, why = fitted_length(transfer.faster_rcnn_fpn(), images=20, given={"schedule.epochs"})
    assert told.schedule.epochs == 24 and not any("steps of" in line for line in why)


def test_memory_is_counted_per_image_and_leaves_no_trace() -> None:
    recipe = pretrain.mocov2_r50_200ep().changed(
        {"backbone": "resnet18", "image_size": 64, "method.queue": 64, "method.hidden": 32}
    )
    torch.manual_seed(0)
    method = recipe.method.build(build_encoder(recipe.encoder))
    before = {name: t.clone() for name, t in method.state_dict().items()}

    def batch_of(count: int) -> Batch:
        return blank_batch(recipe.views, recipe.method.draws(), count=count)

    two, six = (kept(method, lambda n, k=k: batch_of(k * n), dtype=torch.float32) for k in (1, 3))
    assert abs(two.per_image - six.per_image / 3) < 0.02 * two.per_image, "whatever batches it was counted on"
    # A ResNet-18 keeps its 64-channel map of 32 x 32 before and after norm, and the pooled rest: about 2.5 MB.
    assert 1.5e6 < two.per_image < 6e6 and two.once < 1e6
    assert all(torch.equal(t, before[name]) for name, t in method.state_dict().items())
    small = largest_batch(method, batch_of, dtype=torch.float32, free=fixed(method) + 10 * two.per_image)
    assert 6 <= small <= 9
    assert largest_batch(method, batch_of, dtype=torch.float32, free=fixed(method) // 2) == 0
    half = kept(method, batch_of, dtype=torch.bfloat16)
    matrices = sum(p.numel() for p in method.student.parameters() if p.ndim > 1)
    assert half.once == pytest.approx(2 * matrices, rel=0.1), "autocast's copies of the weights, once"
    assert half.per_image < 0.8 * two.per_image


def test_what_a_file_sets_is_given_too(tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text("run: {batch_size: 6}\nmethod: {queue: 99}\n")
    found = pretrain_recipe("mocov2", config=tmp_path / "mine.yaml", settings={"seed": 3, "image_size": 64})
    assert found.given == {
        "run.batch_size",
        "method.queue",
        "run.seed",
        "views.0.crop.size",
        "views.1.crop.size",
    }


def test_a_resumed_recipe_keeps_what_was_fitted_and_what_the_user_says_now(tmp_path) -> None:
    recipe = pretrain.mocov2_r50_200ep()
    assert as_started(recipe, tmp_path, given=()) is None
    began = recipe.changed({"batch_size": 32, "method.queue": 64, "schedule.warmup_steps": 5, "lr": 9.0})
    (tmp_path / "config.yaml").write_text(dump_yaml(saved(began, "mocov2")))
    again = as_started(recipe, tmp_path, given={"method.queue"})
    assert again == recipe.changed({"batch_size": 32, "schedule.warmup_steps": 5})
    assert as_started(pretrain.byol_r50_300ep(), tmp_path, given=()) is None


def test_processes_that_torchrun_started_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_ranks(pretrain.scrl_fpn()) == pretrain.scrl_fpn()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "6")
    run = on_ranks(pretrain.mocov2_r50_200ep().changed({"batch_size": 12})).run
    assert (run.devices, run.nodes) == (2, 3)
    with pytest.raises(SettingsError, match="256 is not a multiple of 6"):
        on_ranks(pretrain.mocov2_r50_200ep())


def test_ranks_of_a_machine_hear_the_same_share_of_its_memory() -> None:
    alone, half = free_memory(torch.device("cpu")), free_memory(torch.device("cpu"), ranks=2)
    assert alone > 0 and half == free_memory(torch.device("cpu"), ranks=2)
    assert abs(free_memory(torch.device("cpu"), ranks=4) * 2 - half) <= 2
