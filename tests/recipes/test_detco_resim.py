"""The published values of DetCo's and ReSim's recipes, as papers and official code state them."""

from __future__ import annotations

from dataclasses import replace

import torch

from boxwise.methods import detco, resim, resim_simsiam
from boxwise.nn.encoder import build_encoder
from boxwise.recipes import detco as detco_runs
from boxwise.recipes import resim as resim_runs
from boxwise.recipes.pretrain import METHODS


def test_detco_runs() -> None:
    """Breaks when a length, a crop or the rate differs from the paper's."""
    runs = {f.__name__: f() for f in detco_runs.PUBLISHED}
    lengths = {name: run.schedule.epochs for name, run in runs.items()}
    assert lengths == {f"detco_r50_{n}ep{aa}": n for aa in ("", "_aa") for n in (100, 200, 800)}
    for run in runs.values():
        assert [v.crop.size for v in run.views] == [224, 224, 255, 255]
        assert [v.crop.scale for v in run.views] == [(0.2, 1.0)] * 2 + [(0.6, 1.0)] * 2
        assert len({v.photo for v in run.views}) == 1 and run.views[0].photo.hue == 0.1
        assert (run.optim.lr, run.optim.weight_decay, run.optim.decay_1d) == (0.06, 1e-4, True)
        assert (run.schedule.per, run.schedule.warmup_epochs, run.run.batch_size) == ("epoch", 0.0, 256)
        assert run.method == detco.Config()
        assert all(v.crop.flip_like is None and v.crop.flip == 0.5 for v in run.views)
    assert METHODS["detco"] is detco_runs.detco_r50_200ep


def test_resim_runs() -> None:
    """Breaks when a run takes another's levels, queue, rate or length."""
    runs = {f.__name__: f() for f in resim_runs.PUBLISHED}
    seen = {
        name: (run.schedule.epochs, run.optim.lr, getattr(run.method, "queue", None), run.encoder.fpn)
        for name, run in runs.items()
    }
    assert seen == {
        "resim_r50_c4_200ep": (200, 0.03, 65_536, False),
        "resim_r50_fpn_200ep": (200, 0.03, 65_536, True),
        "resim_r50_fpn_400ep": (400, 0.03, 65_536, True),
        "resim_r50_c4_in100_500ep": (500, 0.03, 16_384, False),
        "resim_r50_fpn_in100_500ep": (500, 0.03, 16_384, True),
        "resim_simsiam_r50_c4_in100_500ep": (500, 0.10, None, False),
        "resim_simsiam_r50_fpn_in100_500ep": (500, 0.10, None, True),
    }
    for run in runs.values():
        c4 = [("c4", 48, 32, "all")]
        want = [("p4", 48, 32, "all"), ("p3", 32, 24, "group")] if run.encoder.fpn else c4
        assert [(w.level, w.size, w.stride, w.negatives) for w in run.method.windows] == want
        if isinstance(run.method, resim.Config):
            assert run.method.region_proj != run.encoder.fpn
        assert (run.run.batch_size, run.run.precision, run.schedule.per) == (256, "fp32", "epoch")
    assert METHODS["resim"] is resim_runs.resim_r50_fpn_200ep


def test_resims_pyramid_is_the_released_one() -> None:
    """Breaks when it gains a norm, loses a bias, or trains a level that the code does not."""
    run = resim_runs.resim_r50_fpn_200ep()
    with torch.device("meta"):
        fpn = build_encoder(run.encoder).fpn
    sizes = {n.rsplit(".", 1)[0]: 0 for n, _ in fpn.named_parameters()}
    for name, parameter in fpn.named_parameters():
        sizes[name.rsplit(".", 1)[0]] += parameter.numel()
    assert sizes == {
        "inner_blocks.1.0": 131_328,
        "inner_blocks.2.0": 262_400,
        "inner_blocks.3.0": 524_544,
        "layer_blocks.1.0": 590_080,
        "layer_blocks.2.0": 590_080,
    }


def test_resims_heads_have_their_published_widths() -> None:
    """Breaks when the paper's Table 7 is misread."""
    with torch.device("meta"):
        run = resim_runs.resim_r50_c4_200ep()
        taps = run.method.build(build_encoder(run.encoder)).student.taps
        assert sum(p.numel() for p in taps["image"].project.parameters()) == 4_458_624
        convs = [m for m in taps["c4"].project if isinstance(m, torch.nn.Conv2d)]
        assert [(c.in_channels, c.out_channels, c.kernel_size) for c in convs] == [
            (1024, 1024, (3, 3)),
            (1024, 128, (3, 3)),
        ]
        siam = resim_runs.resim_simsiam_r50_c4_in100_500ep()
        method = siam.method.build(build_encoder(siam.encoder))
        assert isinstance(siam.method, resim_simsiam.Config)
    widths = {
        name: [m.out_features for part in parts for m in part if isinstance(m, torch.nn.Linear)]
        for name, parts in {
            n: (method.student.taps[n].project, method.predictor[n]) for n in ("image", "c4")
        }.items()
    }
    assert widths == {"image": [2048, 2048, 2048, 512, 2048], "c4": [1024, 1024, 1024, 256, 1024]}


def test_resims_pyramid_on_simsiam_is_the_one_on_moco() -> None:
    """Breaks when the run that the paper times has other levels, or heads that are not a quarter at their narrowest."""
    on_moco, on_simsiam = (
        f() for f in (resim_runs.resim_r50_fpn_in100_500ep, resim_runs.resim_simsiam_r50_fpn_in100_500ep)
    )
    assert replace(on_simsiam.encoder, zero_init_last=False) == on_moco.encoder
    assert on_simsiam.method.windows == on_moco.method.windows and on_simsiam.views == on_moco.views
    with torch.device("meta"):
        method = on_simsiam.method.build(build_encoder(on_simsiam.encoder))
    for level in ("p4", "p3"):
        layers = (*method.student.taps[level].project, *method.predictor[level])
        assert [m.out_features for m in layers if isinstance(m, torch.nn.Linear)] == [256, 256, 256, 64, 256]
