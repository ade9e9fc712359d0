"""Every recipe is whole: it can be changed by flags, written to YAML, read back, and built."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from boxwise.config import LARS, SGD
from boxwise.methods import scrl
from boxwise.recipes import demo, pretrain, soco, transfer
from boxwise.recipes.recipe import Recipe, TransferRecipe
from boxwise.run.find import pretrain_recipe, saved, transfer_recipe
from boxwise.strict import SettingsError, dump_yaml

RECIPES = [f() for f in (*pretrain.PUBLISHED, *pretrain.OURS)] + [demo.pretraining(seed=0, steps=10)]
TRANSFERS = [f() for f in (*transfer.FAMILIES.values(), *transfer.PROTOCOLS)] + [
    demo.finetuning(seed=0, steps=10)
]


@pytest.mark.parametrize("recipe", [*RECIPES, *TRANSFERS], ids=lambda r: r.name)
def test_a_recipe_survives_yaml(recipe: Recipe | TransferRecipe, tmp_path) -> None:
    """A method's settings keep their class: a dumped BYOL that loads back as SCRL would train something else."""
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(saved(recipe, recipe.name)))
    start = pretrain.mocov2_r50_200ep() if isinstance(recipe, Recipe) else transfer.faster_rcnn_fpn()
    find = pretrain_recipe if isinstance(recipe, Recipe) else transfer_recipe
    back = find(start.name, config=file).recipe
    assert replace(back, name=recipe.name) == recipe
    if isinstance(recipe, Recipe) and isinstance(back, Recipe):
        assert type(back.method) is type(recipe.method)


@pytest.mark.parametrize("recipe", [*RECIPES, *TRANSFERS], ids=lambda r: r.name)
def test_a_recipe_has_nothing_that_cannot_be(recipe: Recipe | TransferRecipe) -> None:
    assert recipe.changed() == recipe


def test_names_are_those_of_their_functions() -> None:
    assert [r.name for r in RECIPES[:-1]] == [f.__name__ for f in (*pretrain.PUBLISHED, *pretrain.OURS)]


HARDWARE = re.compile(r"\b(\d+ (V100|GPUs|TPU v3 cores)|hardware not stated)", re.IGNORECASE)
"""What a run was made on."""
PRINTED = re.compile(r"\bTables? \d|in no table of the paper|prints no result")
"""Where its result stands, or why nowhere."""


@pytest.mark.parametrize("made", pretrain.PUBLISHED, ids=lambda f: f.__name__)
def test_a_published_run_says_what_it_was_made_on_and_where_it_is_printed(made: Callable[[], Recipe]) -> None:
    """Breaks when a docstring leaves out hardware or table, or tells another batch than the recipe has."""
    told = " ".join((made.__doc__ or "").split())
    assert [int(n) for n in re.findall(r"\bbatch (\d+)", told)] == [made().run.batch_size]
    assert HARDWARE.search(told) and PRINTED.search(told)
    assert ("Published: " in told) != ("prints no result" in told)


def test_published_values() -> None:
    """The values of the papers and official repositories, as they stand there."""
    two, ten = pretrain.scrl_r50_200ep(), pretrain.scrl_r50_1000ep()
    assert (two.optim.lr, two.optim.weight_decay, two.method.momentum) == (0.45, 1e-6, 0.97)
    assert (ten.optim.lr, ten.optim.weight_decay, ten.method.momentum) == (0.2, 1.5e-6, 0.996)
    assert two.schedule.early and two.schedule.warmup_epochs == 10 and two.run.batch_size == 8192
    assert (two.method.levels, two.method.boxes, two.method.pool_size, two.method.aligned) == (
        ("c5",),
        10,
        1,
        False,
    )
    assert isinstance(two.optim, LARS) and two.optim.norm == "sum"
    first, second = two.views
    assert (first.photo.blur, first.photo.solarize, second.photo.blur, second.photo.solarize) == (
        1.0,
        0.0,
        0.1,
        0.2,
    )
    assert first.crop.scale == (0.2, 1.0) and first.crop.interpolation == "bicubic"
    moco = pretrain.mocov2_r50_200ep()
    assert isinstance(moco.optim, SGD) and (moco.optim.lr, moco.optim.decay_1d) == (0.03, True)
    assert (
        moco.schedule.per == "epoch"
        and moco.views[0].photo.blur_kind == "pil"
        and moco.views[0].photo.hue == 0.1
    )
    byol = pretrain.byol_r50_1000ep()
    assert (byol.optim.lr, byol.method.momentum, byol.schedule.epochs) == (0.2, 0.996, 1000)
    assert byol.views[0].crop.scale == (0.08, 1.0)


def test_short_flags_reach_their_settings() -> None:
    recipe = pretrain.scrl_r50_200ep().changed(
        {
            "batch_size": 64,
            "image-size": 96,
            "backbone": "resnet18",
            "steps": 20,
            "optim.lr": 1,
            "views.1.photo.blur": 0.5,
        }
    )
    assert recipe.run.batch_size == 64 and [v.crop.size for v in recipe.views] == [96, 96]
    assert recipe.encoder.backbone == "resnet18" and recipe.optim.lr == 1.0
    assert (recipe.schedule.steps, recipe.schedule.epochs) == (20, None)
    assert [v.photo.blur for v in recipe.views] == [1.0, 0.5]


def test_the_size_of_views_scales_what_is_stated_in_their_pixels() -> None:
    """Breaks when boxes of 32 of 224 px stay 32 px in small views, or all land on the finest level."""
    small = pretrain.scrl_fpn().changed({"image-size": 112})
    assert (small.method.min_box, small.method.limits) == (16, (24.0, 48.0, 96.0))
    own = pretrain.scrl_fpn().changed({"method": {"min_box": 20}}, {"image_size": 112})
    assert (own.method.min_box, own.method.limits) == (20, (24.0, 48.0, 96.0)), "the user's own stays"
    assert pretrain.scrl_r50_200ep().changed({"image_size": 112}).method.min_box == 16
    said = pretrain_recipe("scrl_fpn", settings={"image_size": 112, "method.min_box": 20}).changes
    assert len(said) == 1 and said[0].startswith("method.limits [48.0, 96.0, 192.0] -> [24.0, 48.0, 96.0]")
    for named in ("soco", "scrl", "resim", "insloc", "detco"):
        size = pretrain_recipe(named).recipe.views[0].crop.size
        assert pretrain_recipe(named, settings={"image_size": size}).changes == (), named
    byol = pretrain.scrl_fpn().changed({"image_size": 112, "method": {"name": "byol"}})
    assert byol.method.name == "byol"


def test_only_torchvisions_resnets_start_as_the_identity() -> None:
    """Breaks when another backbone must be told what it cannot do, or the user's own word is overruled."""
    for recipe in (pretrain.byol_r50_300ep(), soco.soco_r50_fpn_100ep()):
        for given in (
            {"backbone": "convnext_atto"},
            {"encoder.backbone": "convnext_atto"},
            {"encoder": {"backbone": "convnext_atto"}},
        ):
            assert not recipe.changed(given).encoder.zero_init_last
        assert recipe.changed({"backbone": "resnet18"}).encoder.zero_init_last
        asked = {"backbone": "convnext_atto", "encoder.zero_init_last": True}
        assert recipe.changed(asked).encoder.zero_init_last
    (said,) = pretrain_recipe("byol", settings={"backbone": "convnext_atto"}).changes
    assert said == "encoder.zero_init_last True -> False (only torchvision's ResNets can start so)"


def test_views_of_several_sizes_keep_their_proportion() -> None:
    """Breaks when a view of half the size becomes as large as the others."""
    base = pretrain.byol_r50_300ep()
    half = replace(base.views[1], crop=replace(base.views[1].crop, size=112))
    recipe = replace(base, views=(base.views[0], half)).changed({"image_size": 96})
    assert [view.crop.size for view in recipe.views] == [96, 48]
    with pytest.raises(SettingsError, match=r"views.0.crop.size: .*got 'big'"):
        base.changed({"image_size": "big"})


def test_flags_win_over_the_file(tmp_path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("run: {batch_size: 32, seed: 5}\noptim: {lr: 1e-3}\n")
    recipe = pretrain_recipe("scrl", config=file, settings={"seed": 7}).recipe
    assert (recipe.run.batch_size, recipe.run.seed, recipe.optim.lr) == (32, 7, 1e-3)


def test_all_problems_come_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        pretrain.scrl_r50_200ep().changed(
            {
                "optim.lrr": 1,
                "method.boxes": "many",
                "encoder": {"backbon": "x"},
                "nothing": 1,
                "run.seed": 1.5,
            }
        )
    text = str(caught.value)
    for part in ("optim.lr?", "method.boxes", "encoder.backbone?", "nothing: no such setting", "run.seed"):
        assert part in text, part


def test_what_cannot_be_together_is_named() -> None:
    base = pretrain.scrl_fpn()
    for change, said in [
        ({"encoder.fpn": False}, "encoder.fpn"),
        ({"batch_size": 9, "accumulate": 2}, "multiple of 2"),
        ({"schedule": {"epochs": 1, "steps": 1}}, "exactly one"),
        ({"image_size": 16}, "views.0.crop.size"),
        ({"steps": 0}, "more than 0"),
        ({"views.1.crop.size": 96}, "views: both are one batch .* 96 and 224 px"),
    ]:
        with pytest.raises(SettingsError, match=said):
            base.changed(change)


def test_nothing_is_said_of_what_could_not_be_read() -> None:
    """Breaks when the old values of a section with a mistake are told to be in conflict with the new ones of others."""
    base = pretrain.scrl_r50_200ep()
    levels = {"method.levels": ["p2", "p3", "p4", "p5"]}
    with pytest.raises(SettingsError, match=r"need encoder\.fpn: true"):
        base.changed(levels)
    with pytest.raises(SettingsError) as caught:
        base.changed({**levels, "encoder.fpnn": True, "steps": 0})
    said = [problem.partition(": ")[0] for problem in caught.value.problems]
    assert said == ["encoder.fpnn", "schedule"]


def test_another_method_can_be_laid_in() -> None:
    recipe = pretrain.scrl_r50_200ep().changed({"method": {"name": "byol"}})
    assert recipe.method.name == "byol"


USER_FILE = """
from dataclasses import replace
from typing import Literal

from boxwise.config import settings
from boxwise.methods import scrl
from boxwise.methods.base import MethodConfig
from boxwise.recipes.pretrain import scrl_r50_200ep


@settings
class Mine(MethodConfig):
    name: Literal["mine"] = "mine"
    boxes: int = 3

    def build(self, encoder):
        return scrl.Config(boxes=self.boxes).build(encoder)

    def draws(self):
        return scrl.Config(boxes=self.boxes).draws()


def my_recipe():
    return replace(scrl_r50_200ep(), name="mine", method=Mine())
"""


def test_a_users_own_method_is_read_as_its_own_class(tmp_path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(USER_FILE)
    found = pretrain_recipe(f"{file}:my_recipe", settings={"method.boxes": 5})
    assert (found.recipe.method.name, found.recipe.method.boxes) == ("mine", 5)
    assert found.source == f"{file.resolve()}:my_recipe" and not found.fitted
    with pytest.raises(SettingsError, match=r"did you mean method\.boxes"):
        pretrain_recipe(f"{file}:my_recipe", settings={"method.boxs": 5})
    with pytest.raises(SettingsError, match="did you mean my_recipe"):
        pretrain_recipe(f"{file}:my_recip")


def test_an_unknown_name_tells_the_nearest() -> None:
    with pytest.raises(SettingsError, match="did you mean scrl_r50_200ep"):
        pretrain_recipe("scrl_r50_20ep")


def test_a_short_name_is_fitted_and_a_published_run_is_not(tmp_path) -> None:
    assert pretrain_recipe("scrl").fitted and not pretrain_recipe("scrl_r50_200ep").fitted
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(saved(pretrain.scrl_fpn(), "scrl")))
    assert not pretrain_recipe("scrl", config=file).fitted, "a resolved file must not be fitted again"


def test_scrl_defaults_are_the_published_run() -> None:
    assert pretrain.scrl_r50_200ep().method == scrl.Config()
