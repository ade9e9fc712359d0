"""DetCo: patches, heads, queues and terms, and one whole step against loops."""

from __future__ import annotations

from typing import Any

import pytest
import slow_insloc
import torch
import torch.nn.functional as F
from torch import Tensor

from boxwise.data.cut import Crop, ViewSpec
from boxwise.geometry.views import Batch, View
from boxwise.methods.detco import Config, DetCo
from boxwise.nn.encoder import EncoderConfig
from boxwise.nn.shuffle import Shuffle
from boxwise.recipes.detco import detco_r50_200ep
from encoders import TinyEncoder
from given import Given, numbered

STAGES = ("c2", "c3", "c4", "c5")
WEIGHTS = (0.1, 0.4, 0.7, 1.0)


def rand(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def small(**options: Any) -> DetCo:
    torch.manual_seed(0)
    method = Config(**{"width": 5, "hidden": 7, "queue": 12} | options).build(TinyEncoder(6))
    with torch.no_grad():
        for p in method.parameters():
            p += 0.2 * torch.randn_like(p)
    return method


def a_batch(config: Config, images: int = 8) -> Batch:
    """Two views of 64 pixels and two of 51, of which patches have 13 of a cell's 17."""
    sizes = (64, 64, 51, 51)[: 4 if config.patches else 2]
    crop, flip = torch.tensor([[0.0, 0, 64, 64]]).expand(images, 4), torch.zeros(images, dtype=torch.bool)
    views = tuple(View(rand(images, 3, s, s, seed=s + i) - 0.5, crop, flip) for i, s in enumerate(sizes))
    draws = {n: rand(images, *shape, seed=len(n)) for n, shape in config.draws().items()}
    return Batch(views, torch.arange(images), draws)


def slow_embeddings(
    weights: dict[str, Tensor], kind: str, images: Tensor, groups: list[list[int]]
) -> dict[str, Tensor]:
    """Stage by stage, in groups that share statistics; `images` are (B, 1 or 9, 3, H, W)."""
    found: dict[str, Tensor] = {}
    for group in groups:
        x = torch.cat([images[i] for i in group])
        for stage in range(5):
            at = f"encoder.body.stages.{stage}"
            x = F.conv2d(x, weights[f"{at}.0.weight"], stride=2, padding=1)
            mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
            scale, shift = (weights[f"{at}.1.{n}"].view(1, -1, 1, 1) for n in ("weight", "bias"))
            x = ((x - mean) / (var + 1e-5).sqrt() * scale + shift).relu()
            if not stage:
                continue
            means, head = x.mean((2, 3)), f"taps.{kind}_c{stage + 1}.project."
            per = images.shape[1]
            rows = torch.stack(
                [torch.cat([means[n * per + p] for p in range(per)]) for n in range(len(group))]
            )
            hidden = (rows @ weights[f"{head}1.weight"].T + weights[f"{head}1.bias"]).relu()
            out = hidden @ weights[f"{head}3.weight"].T + weights[f"{head}3.bias"]
            at_stage = found.setdefault(f"c{stage + 1}", out.new_zeros(len(images), out.shape[1]))
            found[f"c{stage + 1}"] = at_stage.index_put((torch.tensor(group),), out)
    return found


def slow_patches(image: Tensor, noise: Tensor) -> Tensor:
    """Nine patches of 13 pixels from one image of 51, in the order that its numbers say."""
    cells = sorted(range(9), key=lambda cell: noise[cell, 2])
    made = []
    for cell in cells:
        top = cell // 3 * 17 + int(noise[cell, 0] * 5)
        left = cell % 3 * 17 + int(noise[cell, 1] * 5)
        made.append(image[:, top : top + 13, left : left + 13])
    return torch.stack(made)


def test_whole_step_equals_the_loops(double: None) -> None:
    """Breaks when anything between pixels and gradients is not DetCo's: patches, passes, heads, terms, weights."""
    method = small()
    batch = a_batch(method.config)
    queues = {n: q.keys.clone() for n, q in method.queues.items()}
    out = method(batch)["loss"]
    out.backward()

    trained = dict(method.student.named_parameters())
    weights = {n: p.detach().clone().requires_grad_() for n, p in trained.items()}
    teacher = dict(method.teacher.network.named_parameters())
    whole = [[*range(8)]]
    unit, rows = F.normalize, {}
    for i, kind in enumerate(("global", "local")):
        q, k = batch.views[2 * i].image[:, None], batch.views[2 * i + 1].image[:, None]
        if kind == "local":
            q, k = (
                torch.stack([slow_patches(x[n, 0], batch.draws["patches"][n, side]) for n in range(8)])
                for side, x in enumerate((q, k))
            )
        groups = slow_insloc.dealt(batch.draws["shuffle"][:, i].tolist())
        rows[kind] = slow_embeddings(weights, kind, q, whole), slow_embeddings(teacher, kind, k, groups)
    total = torch.zeros(())
    for stage, weight in zip(STAGES, WEIGHTS, strict=True):
        for ours, theirs in (("global", "global"), ("local", "local"), ("local", "global")):
            q, k = unit(rows[ours][0][stage]), unit(rows[theirs][1][stage]).detach()
            logits = torch.cat([(q * k).sum(-1, keepdim=True), q @ queues[f"{theirs}_{stage}"].T], dim=1)
            total = total + weight * F.cross_entropy(logits / 0.2, torch.zeros(8, dtype=torch.long))
    total.backward()
    torch.testing.assert_close(out, total, rtol=1e-9, atol=0)
    for name, parameter in trained.items():
        want = weights[name].grad
        floor = 1e-9 * max(float(want.abs().max()), 1e-3)
        torch.testing.assert_close(parameter.grad, want, rtol=1e-7, atol=floor, msg=name)


def embeddings(seed: int, count: int = 3) -> dict[str, Tensor]:
    names = [f"{kind}_{stage}" for kind in ("global", "local") for stage in STAGES]
    return {n: rand(count, 5, seed=seed + i) - 0.5 for i, n in enumerate(names)}


def test_trap_06_local_queries_meet_global_keys_and_the_global_queue() -> None:
    """Breaks when the cross term takes the local key, the global query, or the local queue."""
    method = small(symmetric_gl=True)
    query, key = embeddings(1), embeddings(50)

    def slow(ours: str, theirs: str) -> Tensor:
        q, k = (F.normalize(x[f"{kind}_c4"], dim=-1) for x, kind in ((query, ours), (key, theirs)))
        negatives = method.queues[f"{theirs}_c4"].keys
        logits = torch.cat([(q * k).sum(-1, keepdim=True), q @ negatives.T], dim=1) / 0.2
        return F.cross_entropy(logits, torch.zeros(3, dtype=torch.long))

    terms = method.terms("c4", query, key)
    kinds = {"g": "global", "l": "local"}
    assert list(terms) == ["gg", "ll", "gl", "lg"]
    torch.testing.assert_close(terms["gg"], slow("global", "global"))
    torch.testing.assert_close(terms["ll"], slow("local", "local"))
    torch.testing.assert_close(terms["gl"], slow(kinds["l"], kinds["g"]))
    torch.testing.assert_close(terms["lg"], slow(kinds["g"], kinds["l"]))


def test_trap_05_every_head_has_a_queue_and_keys_enter_once_all_are_compared() -> None:
    """Breaks when heads share a queue unasked, a key is its own negative, or a queue takes another's keys."""
    method = small()
    assert [*method.queues] == [f"{kind}_{stage}" for kind in ("global", "local") for stage in STAGES]
    query, key = embeddings(1), embeddings(50)
    want = {s: method.terms(s, query, key) for s in STAGES}
    method.student, method.teacher = Given(query), Given(key)
    views = tuple(numbered(3, 24) for _ in range(4))
    draws = {n: rand(3, *shape, seed=7) for n, shape in method.config.draws().items()}
    out = method(Batch(views, torch.arange(3), draws))
    for stage, weight in zip(STAGES, WEIGHTS, strict=True):
        for name, term in want[stage].items():
            torch.testing.assert_close(out[f"{name}_{stage}"], weight * term)
    for name, keys in key.items():
        torch.testing.assert_close(method.queues[name].keys[:3], F.normalize(keys, dim=-1))
        assert int(method.queues[name].cursor) == 3


def test_shared_queues_take_the_keys_of_all_stages() -> None:
    """Breaks when Table 16's ablation is read nowhere, or mixes global and local keys."""
    method = small(queues="shared", queue=40)
    method(a_batch(method.config))
    assert {n: int(q.cursor) for n, q in method.queues.items()} == {"global": 32, "local": 32}


def test_trap_07_widths_weights_and_rate() -> None:
    """Breaks when weights are normalised unasked, heads have another width, or the rate is MoCo-v2's."""
    recipe = detco_r50_200ep()
    assert isinstance(recipe.method, Config) and recipe.method == Config()
    assert recipe.method.stage_weights() == dict(zip(STAGES, WEIGHTS, strict=True))
    assert (recipe.optim.lr, recipe.run.batch_size, recipe.method.temperature) == (0.06, 256, 0.2)
    normalised = Config(normalise_weights=True).stage_weights()
    assert sum(normalised.values()) == pytest.approx(1) and normalised["c5"] == pytest.approx(1 / 2.2)

    encoder = TinyEncoder(6)
    encoder.channels = dict(zip(STAGES, (256, 512, 1024, 2048), strict=True))
    widths: dict[Any, dict[str, tuple[int, int]]] = {}
    for hidden in (2048, "stage"):
        taps = Config(hidden=hidden, queue=4).build(encoder).student.taps
        widths[hidden] = {n: (t.project[1].in_features, t.project[1].out_features) for n, t in taps.items()}
    assert [widths[2048][f"local_{s}"][0] for s in STAGES] == [2304, 4608, 9216, 18432]
    assert {w for _, w in widths[2048].values()} == {2048}
    assert [widths["stage"][f"{kind}_c5"] for kind in ("global", "local")] == [(2048, 2048), (18432, 2048)]
    wide = small(hidden="in").student.taps["local_c5"].project
    assert (wide[1].in_features, wide[1].out_features) == (54, 54)


def test_trap_08_patches_of_an_image_stay_together() -> None:
    """Breaks when patches are gathered patch by patch: an image's row would hold nine images' patches."""
    method = small(shuffle_patches=False)
    batch = a_batch(method.config)
    for norm in [m for m in method.modules() if isinstance(m, torch.nn.BatchNorm2d)]:
        norm.eval()
    view = method.seen(batch)[2]
    assert view.image.shape == (8, 9, 3, 13, 13)
    names = ["local_c3"]
    together = method.student(view, taps=names)["local_c3"]
    for n in range(8):
        one = View(view.image[n : n + 1], view.crop[n : n + 1], view.flip[n : n + 1])
        torch.testing.assert_close(method.student(one, taps=names)["local_c3"][0], together[n])


def test_trap_09_neither_bound_is_taken_for_granted() -> None:
    """Breaks when a term is clamped or reordered by the other: which of gg and gl is larger is for the data to say."""
    method, key = small(), embeddings(50)
    near, far = {n: 3 * k for n, k in key.items()}, {n: -k for n, k in key.items()}
    globals_near = {n: (near if n.startswith("global") else far)[n] for n in key}
    locals_near = {n: key[f"global_{n[-2:]}"] if n.startswith("local") else far[n] for n in key}
    for stage in STAGES:
        one, two = method.terms(stage, globals_near, key), method.terms(stage, locals_near, key)
        assert one["gg"] < one["gl"] and two["gl"] < two["gg"]


def test_trap_04_whole_sets_of_patches_are_shuffled() -> None:
    """Breaks when patches travel to other groups on their own, or keys come back in another order."""
    method = small()
    batch = a_batch(method.config)
    seen: list[Tensor] = []
    method.teacher.network.register_forward_hook(lambda m, inputs, out: seen.append(inputs[0].image))
    keys = method.seen(batch)[3].image
    method(batch)
    order = Shuffle(batch.draws["shuffle"][:, 1]).order()
    assert order.tolist() != [*range(8)]
    assert torch.equal(torch.cat(seen[2:]), keys[order]) and [len(x) for x in seen] == [4] * 4


def test_stages_and_parts_can_be_left_out() -> None:
    """Breaks when an ablation computes, draws or expects what it does not read."""
    last = small(stages=("c5",), weights=(1.0,))
    assert [*last(a_batch(last.config))] == ["gg_c5", "ll_c5", "gl_c5", "loss"]
    none = small(weights=(0.0, 0.0, 0.0, 1.0))
    assert [*none.student.taps] == ["global_c5", "local_c5"]
    apart = small(global_local=False)
    assert not any(name.startswith("gl") for name in apart(a_batch(apart.config)))
    whole = small(patches=False)
    assert [*whole(a_batch(whole.config))] == [*(f"gg_{s}" for s in STAGES), "loss"]
    assert whole.config.draws() == {"shuffle": (1,)} and len(whole.seen(a_batch(whole.config))) == 2


def conflicts(config: Config, sizes: tuple[int, ...], **encoder: Any) -> list[str]:
    views = tuple(ViewSpec(crop=Crop(size=size)) for size in sizes)
    return [*config.conflicts(views, EncoderConfig(**encoder))]


def test_what_cannot_be_is_told() -> None:
    """Breaks when a missing view or a pyramid that nothing trains ends in an error of shapes."""
    assert conflicts(Config(), (224, 224, 255, 255)) == []
    assert conflicts(Config(patches=False), (224, 224)) == []
    assert conflicts(Config(), (224, 224)) == ["views: detco takes 4 views, got 2"]
    assert "needs 24 px" in conflicts(Config(), (224, 224, 255, 20))[0]
    assert "encoder.fpn" in conflicts(Config(), (224, 224, 255, 255), fpn=True)[0]
    for wrong in ({"weights": (1.0,)}, {"weights": (0.0,) * 4}, {"patch": (9, 8)}, {"stages": ("c5",) * 4}):
        with pytest.raises(ValueError, match=r"weights|patch|stages"):
            Config(**wrong)


def test_bodies_that_do_not_pad_ask_for_patches_of_their_stride() -> None:
    """Breaks when small patches end in an error of a convolution, or bodies that pad are refused theirs."""
    small, large = (64, 64, 73, 73), (111, 111, 126, 126)
    assert conflicts(Config(), small, backbone="test_resnet") == conflicts(Config(), small) == []
    assert conflicts(Config(), large, backbone="test_convnext") == []
    (said,) = conflicts(Config(), small, backbone="test_convnext")
    assert said == (
        "views.2.crop.size, views.3.crop.size: test_convnext does not pad and needs patches of 32 px; views of 73 px "
        "have patches of 18; set 126 or more, as --image-size 111 does"
    )
    assert len(conflicts(Config(), (110, 110, 125, 125), backbone="test_convnext")) == 1
    assert conflicts(Config(), small, backbone="no_such") == []  # named where it is built
