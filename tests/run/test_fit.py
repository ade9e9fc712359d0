"""A short name is fitted to the images and the device, and every change is said."""

from dataclasses import replace

import torch

from boxwise.config import Run
from boxwise.nn.encoder import build_encoder
from boxwise.recipes import pretrain, transfer
from boxwise.run.fit import fitted, fitted_transfer, given_keys, rate
from boxwise.run.memory import blank_batch, fixed, kept_per_image, largest_batch


def test_a_small_folder_gets_a_batch_a_warm_up_and_a_queue_that_fit() -> None:
    recipe, why = fitted(pretrain.mocov2_r50_200ep(), images=1000, room=10_000, on_cpu=True, given=())
    assert recipe.run.batch_size == 64 and recipe.method.queue == 448 <= 500
    assert recipe.method.queue % 64 == 0 and len(why) == 2
    assert rate(recipe) == 0.03 * 64 / 256


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


def test_what_the_user_set_stays() -> None:
    settings = {"batch_size": 100, "method.queue": 5000, "schedule.warmup_steps": 70, "epochs": 1}
    recipe = pretrain.mocov2_r50_200ep().changed(settings)
    given = given_keys(settings, recipe)
    assert given == {"run.batch_size", "method.queue", "schedule.warmup_steps", "schedule.epochs"}
    assert fitted(recipe, images=1000, room=64, on_cpu=True, given=given) == (recipe, [])


def test_fine_tuning_takes_as_long_as_the_data_asks() -> None:
    few, _ = fitted_transfer(transfer.faster_rcnn_fpn(), images=20, given=())
    many, _ = fitted_transfer(transfer.faster_rcnn_fpn(), images=118_000, given=())
    assert (few.schedule.steps, many.schedule.steps) == (600, 12_000)
    told, why = fitted_transfer(transfer.faster_rcnn_fpn(), images=20, given={"schedule.epochs"})
    assert told.schedule.epochs == 24 and not any("steps of" in line for line in why)


def test_memory_is_counted_per_image_and_leaves_no_trace() -> None:
    recipe = pretrain.mocov2_r50_200ep().changed(
        {"backbone": "resnet18", "image_size": 64, "method.queue": 64, "method.hidden": 32}
    )
    torch.manual_seed(0)
    method = recipe.method.build(build_encoder(recipe.encoder))
    before = {name: t.clone() for name, t in method.state_dict().items()}
    two, six = (
        kept_per_image(method, blank_batch(recipe.views, recipe.method.draws(), count=n), dtype=torch.float32)
        for n in (2, 6)
    )
    assert abs(two - six) < 0.2 * six, "the figure must not depend on the batch it was read from"
    # A ResNet-18 keeps its 64-channel map of 32 x 32 before and after norm, and the pooled rest: about 2.5 MB.
    assert 1.5e6 < six < 6e6
    assert all(torch.equal(t, before[name]) for name, t in method.state_dict().items())
    batch = blank_batch(recipe.views, recipe.method.draws(), count=2)
    small = largest_batch(method, batch, dtype=torch.float32, free=fixed(method) + 10 * two)
    assert 6 <= small <= 9
    assert largest_batch(method, batch, dtype=torch.float32, free=fixed(method) // 2) == 0
