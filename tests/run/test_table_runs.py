"""Ablations that change what is built or compared train, not only build."""

import math
from pathlib import Path

import pytest
from tiny import photos, rows, settings

from boxwise.recipes.tables import derived
from boxwise.run.pretrain import pretrain
from boxwise.strict import load_yaml

CHANGED = (
    "insloc_r50_fpn_200ep__roialign_holistic_features_losses_on_4_fpn_levels",
    "soco_r50_fpn_100ep__whole_image",
    "soco_r50_fpn_100ep__selective_search",
    "soco_r50_fpn_100ep__fpn",
    "soco_r50_fpn_100ep__random_boxes_k_8",
    "detco_r50_100ep__hic",
    "detco_r50_100ep__one_queue_shared_by_all_stages",
    "detco_r50_100ep__stage_weights_res2_res5_0_0_0_1",
    "resim_r50_c4_in100_500ep__roialign_instead_of_prroipool_w48_s32",
    "byol_as_in_scrl_r50_200ep",
    "scrl_r50_200ep__rois_10_box_jitter_infinite_iou_threshold_0.5",
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("images"), 12)


@pytest.mark.parametrize("name", CHANGED)
def test_an_ablation_runs_two_steps(name: str, images: Path, tmp_path: Path) -> None:
    """Breaks when a row that counts as one that can run stops in its first step, or is saved as another."""
    given = settings(name)
    given.pop("method.boxes", None)
    pretrain(name, images, tmp_path / "run", settings=given)
    losses = [row["train/loss"] for row in rows(tmp_path / "run")]
    assert len(losses) == 2 and all(math.isfinite(loss) for loss in losses)
    saved = load_yaml(tmp_path / "run" / "config.yaml")
    assert saved["name"] == saved["source"] == name in derived()
