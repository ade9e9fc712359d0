"""Every result row of the papers leads to a recipe, to random weights, or to the reason why not."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from boxwise.methods import image_level
from boxwise.nn.encoder import build_encoder
from boxwise.recipes import pretrain
from boxwise.recipes.paper_rows import Row, rows
from boxwise.recipes.recipe import Recipe
from boxwise.recipes.table_transfers import finish, whole
from boxwise.recipes.tables import MADE_BY, derived, start
from boxwise.run.catalogue import listing
from boxwise.run.find import pretrain_recipe, saved
from boxwise.strict import SettingsError, dump_yaml

SOURCE = Path(__file__).parents[3] / "shared/reference/paper_tables.json"
IMAGENET = 1_281_167


RECIPES = {recipe.name: recipe for recipe in (start(row).recipe for row in rows()) if recipe is not None}
BUILT = {dump_yaml([r.method, r.encoder]): r for r in RECIPES.values()}
"""Recipes whose networks differ, or at least their settings."""


def the(paper: str, table: str, init: str, variant: str | None = None, **stated: object) -> Recipe:
    """The recipe of the rows that are told so."""
    found = [
        start(row).recipe
        for row in rows()
        if (row.paper, row.table, row.init, row.variant) == (paper, table, init, variant)
        and all(getattr(row, key) == value for key, value in stated.items())
    ]
    assert found and found[0] is not None and all(recipe == found[0] for recipe in found)
    return found[0]


@pytest.mark.skipif(not SOURCE.is_file(), reason="the tables that the rows were read from are not here")
def test_the_rows_are_the_papers_own() -> None:
    """Breaks when a row is dropped, or a figure changed, on its way into the package."""
    source = [{key: row.get(key) for key in asdict(rows()[0])} for row in json.loads(SOURCE.read_text())]
    assert [asdict(row) for row in rows()] == source
    assert {key for row in json.loads(SOURCE.read_text()) for key in row} == source[0].keys()


def test_every_row_of_a_method_here_has_a_recipe_and_every_other_one_a_reason() -> None:
    """Breaks when a row is left out in silence, or a recipe is given to weights that it does not make."""
    for row in rows():
        found = start(row)
        if row.init in MADE_BY:
            assert found.recipe is not None and found.missing is None, row
        elif row.init == "random":
            assert found.recipe is None and found.missing is None, row
        else:
            assert found.recipe is None and found.missing, row
    assert {row.init for row in rows() if row.role == "own"} <= MADE_BY.keys(), "the papers' own methods"


def test_every_recipe_can_be_and_lasts_as_long_as_its_row_says() -> None:
    """Breaks when an ablation asks for what cannot be together, or trains for another number of epochs."""
    for row in rows():
        if (recipe := start(row).recipe) is not None:
            assert recipe.steps(IMAGENET) == row.pretrain_epochs * (IMAGENET // recipe.run.batch_size)
    for recipe in RECIPES.values():
        assert recipe.changed() == recipe, recipe.name


def test_recipes_of_one_name_are_one() -> None:
    """Breaks when two rows share a name and not the settings, so that a run folder could not tell them apart."""
    named: dict[str, Recipe] = {}
    for row in rows():
        if (recipe := start(row).recipe) is not None:
            assert named.setdefault(recipe.name, recipe) == recipe, recipe.name
    published = {f.__name__: f() for f in pretrain.PUBLISHED}
    assert all(recipe == published[name] for name, recipe in named.items() if name in published)


@pytest.mark.parametrize("recipe", BUILT.values(), ids=lambda recipe: recipe.name)
def test_every_recipe_builds(recipe: Recipe) -> None:
    """Breaks when a row's settings cannot be built."""
    with torch.device("meta"):
        method = recipe.method.build(build_encoder(recipe.encoder))
    assert sum(p.numel() for p in method.student.parameters()) > 2e7


def test_every_recipe_survives_yaml(tmp_path: Path) -> None:
    """Breaks when a row's settings mean something else once they are read again."""
    file = tmp_path / "config.yaml"
    for name, recipe in RECIPES.items():
        file.write_text(dump_yaml(saved(recipe, name)))
        assert replace(pretrain_recipe("mocov2_r50_200ep", config=file).recipe, name=name) == recipe


def test_figures_in_docstrings_are_those_of_the_rows() -> None:
    """Breaks when a published run claims a figure that no paper printed of it."""
    elsewhere = {"byol_r50_300ep": {72.5}, "simsiam_r50_200ep": {70.0}}  # in the methods' own papers
    printed = dict(elsewhere)
    for row in rows():
        if (recipe := start(row).recipe) is not None:
            figures = {round(value, 1) for value in row.metrics.values() if not isinstance(value, str)}
            printed[recipe.name] = printed.get(recipe.name, set()) | figures
    told = 0
    for run in pretrain.PUBLISHED:
        claims = re.findall(r"(?<![\w.])\d+\.\d+", (run.__doc__ or "").partition("Published:")[2])
        assert {float(claim) for claim in claims} <= printed.get(run.__name__, set()), run.__name__
        told += bool(claims)
    assert told > 20


def test_scrls_tables_6_and_7() -> None:
    """Breaks when an ablation's row trains what another row trains."""
    for count in (1, 5, 10):
        assert the("SCRL", "6", "SCRL", f"#RoIs={count}").method.boxes == count
    told = {
        "#RoIs=1, box jitter=20%, IoU threshold=0.5": (1, 0.2, True, 0.5),
        "#RoIs=10, box jitter=10%, IoU threshold=0.5": (10, 0.1, True, 0.5),
        "#RoIs=10, box jitter=\u221e, IoU threshold=0.5": (10, 0.0, False, 0.5),
        "#RoIs=10, box jitter=none, IoU threshold=none": (10, 0.0, True, None),
    }
    for variant, expected in told.items():
        method = the("SCRL", "7", "SCRL", variant).method
        assert (method.boxes, method.jitter, method.matched, method.max_iou) == expected
    assert the("SCRL", "3", "SCRL").encoder.backbone == "resnet101"


def test_byol_in_scrls_tables_stands_on_scrls_base() -> None:
    """Breaks when the gain over BYOL is measured with other crops, rates or lengths."""
    for table, byol in (("3", the("SCRL", "3", "BYOL")), ("1", the("SCRL", "1", "BYOL"))):
        ours = the("SCRL", table, "SCRL")
        assert byol.method == image_level.BYOLConfig(momentum=ours.method.momentum, joint=True)
        assert replace(byol, name=ours.name, method=ours.method) == ours
    assert the("InsLoc", "1", "BYOL") == pretrain.byol_r50_300ep()


def test_detcos_tables_1_15_and_16() -> None:
    """Breaks when an ablation keeps the patches, or its weights are not the row's."""
    alone = the("DetCo", "1", "DetCo", "+HIC (intermediate losses)")
    assert not alone.method.patches and len(alone.views) == 2
    whole = the("DetCo", "1", "DetCo", "+HIC +CGLC (= DetCo)")
    assert whole.method.patches and whole.method == pretrain_recipe("detco_r50_100ep").recipe.method
    normed = the("DetCo", "15", "DetCo", "stage weights (res2..res5)=(0.1,0.4,0.7,1)+Norm").method
    assert normed.normalise_weights and normed.weights == (0.1, 0.4, 0.7, 1.0)
    assert the("DetCo", "15", "DetCo", "stage weights (res2..res5)=(0,0,0,1)").method.stage_weights() == {
        "c5": 1
    }
    assert the("DetCo", "16", "DetCo", "one queue shared by all stages").method.queues == "shared"
    assert the("DetCo", "3", "DetCo+AA").views[0].auto_augment


def test_resims_hundred_classes() -> None:
    """Breaks when the windows of Table 3, its pooling, the queue or the rate are not those of the paper."""
    for variant, size, stride in (("W48-S16", 48, 16), ("W48-S32", 48, 32), ("W64-S48", 64, 48)):
        (window,) = the("ReSim", "3a", "ReSim-C4", variant).method.windows
        assert (window.level, window.size, window.stride) == ("c4", size, stride)
    align = "text 4.1 (RoIAlign vs PrRoIPool)"
    assert the("ReSim", align, "ReSim-C4", "RoIAlign instead of PrRoIPool (W48-S32)").method.pool == "align"
    assert the("ReSim", "1", "MoCo-v2").method.queue == 16_384
    assert the("ReSim", "2", "SimSiam").optim.lr == 0.10


def test_insloc_and_soco_build_up_to_themselves() -> None:
    """Breaks when a part is added in the wrong row, or the last row is not the method."""
    first = the("InsLoc", "3b", "InsLoc", "+RoIAlign (holistic features, losses on 4 FPN levels)")
    second = the("InsLoc", "3b", "InsLoc", "+RoIAlign +copy-paste")
    third = the("InsLoc", "3b", "InsLoc", "+RoIAlign +copy-paste +box augmentation (=InsLoc)")
    pasted = [[view.paste is not None for view in recipe.views] for recipe in (first, second, third)]
    assert pasted == [[False, False], [True, True], [True, True]]
    assert [any(r.method.augmented) for r in (first, second, third)] == [False, False, True]
    assert third.method == the("InsLoc", "4c", "InsLoc", pretrain_epochs=200).method
    whole = the("SoCo", "4", "SoCo", "+multi-view (V3) = SoCo")
    assert whole.method == the("SoCo", "1", "SoCo", pretrain_epochs=100).method
    assert the("SoCo", "5c", "SoCo", "random boxes, K=8").method.objects.proposals == "random"
    assert the("SoCo", "9", "SoCo", pretrain_epochs=530).schedule.epochs == 530


def test_the_listing_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    """Breaks when the coverage that is printed is not that of the rows."""
    said = listing("tables")
    runs = sum(whole(row) for row in rows())
    made, measured = sum(start(row).runs for row in rows()), sum(finish(row).runs for row in rows())
    last = f"in all  {runs} / {len(rows())} (weights of {made} and figures of {measured} rows)"
    assert said.splitlines()[-1] == last
    for paper in {row.paper for row in rows()}:
        own = [row for row in rows() if row.paper == paper]
        assert f"\n{paper}  {sum(map(whole, own))} / {len(own)}\n" in said
    without = sum(int(line.split()[-2]) for line in said.splitlines() if line.endswith((" row", " rows")))
    assert without == len(rows()) - runs


def test_no_row_says_what_it_was_measured_with_as_ours() -> None:
    """Breaks when a row has no figure, or one that is neither a number nor told as diverged."""
    assert all(row.metrics for row in rows())
    assert {v for row in rows() for v in row.metrics.values() if isinstance(v, str)} == {"diverged"}
    assert all(isinstance(row, Row) and row.dataset for row in rows())


def test_ablations_are_run_by_name() -> None:
    """Breaks when a row that counts as one that can run is not to be had on the command line."""
    name = "scrl_r50_200ep__rois_10_box_jitter_infinite_iou_threshold_0.5"
    found = pretrain_recipe(name, settings={"batch_size": 64})
    assert (found.recipe.name, found.source, found.fitted) == (name, name, False)
    assert (found.recipe.method.matched, found.recipe.run.batch_size) == (False, 64)
    with pytest.raises(SettingsError, match="did you mean scrl_r50_200ep__rois_5"):
        pretrain_recipe("scrl_r50_200ep__rois_6")
    published = {f.__name__ for f in pretrain.PUBLISHED}
    assert RECIPES.keys() - published == derived().keys()
    assert all(re.fullmatch(r"[a-z0-9_.]+", name) for name in RECIPES)
    said = listing("recipes")
    assert said.isascii() and all(f"  {name} " in said for name in RECIPES)
