"""SoCo against arrays of the official implementation."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from boxwise.data.cut import Cut
from boxwise.data.objects import BLOCK, Draws, Listed, Objects, by_view, inclusive, seen_by_both, select
from boxwise.geometry.regions import same_objects
from boxwise.geometry.views import Batch, View
from boxwise.methods.soco import Config, SoCo
from boxwise.nn.encoder import EncoderConfig, build_encoder
from boxwise.nn.teacher import cosine_momentum
from encoders import TinyEncoder
from given import t

Arrays = dict[str, np.ndarray]
VIEWS = {  # switches that the files do not hold: side of each view, and the set of boxes it belongs to
    "soco_geometry": ((224, 224, 112), {"12": 1, "13": 2}),
    "soco_star_geometry": ((224, 224, 192, 112), {"12": 1, "13": 2, "14": 1}),
}


def proposals(arrays: Arrays, i: int) -> NDArray[np.float64]:
    """As the worker gets them and turns them into SoCo's convention."""
    found = arrays["proposals"][i, : arrays["n_proposals"][i]].astype(np.float32) + np.float32([0, 0, 1, 1])
    width, height = arrays["image_size"][i].tolist()
    return inclusive(found, width=width, height=height)


def cut(arrays: Arrays, i: int, view: int) -> Cut:
    flip = bool(arrays["flips"][i, view - 1])
    if view == 1:
        return Cut(0, 0, *arrays["image_size"][i].tolist(), flip)
    top, left, height, width = arrays[f"crop{2 if view == 4 else view}"][i].tolist()
    return Cut(left, top, width, height, flip)


def draws(arrays: Arrays, i: int, pair: int, boxes: int) -> Draws:
    """Uniform numbers, each in the middle of its range, that lead to the recorded draws of pair 1-2 or 1-3."""
    chosen = arrays[f"selected_1{pair}"][i]
    chosen = chosen[chosen > 0]
    order = np.full(boxes, 0.9)
    order[chosen - 1] = np.arange(len(chosen)) / 1000
    moved, amount = arrays[f"jitter_p_1{pair}"][i], arrays[f"jitter_u_1{pair}"][i]
    sets = arrays["pad_ids"][i][[pair - 2, pair]]  # view 1 of the pair, and the pair's other view
    own = [*chosen] or [1]
    repeated = [[(own.index(x) + 0.5) / len(own) if x else 0.0 for x in row] for row in sets.tolist()]
    return Draws(
        order, np.nan_to_num(moved, nan=0.9), np.nan_to_num((amount + 0.1) / 0.2), np.array(repeated)
    )


@pytest.fixture(params=VIEWS)
def drawn(request: pytest.FixtureRequest, golden) -> tuple[str, Arrays, list[View]]:
    """The file's images as views that know their objects, made as worker and loader make them."""
    name: str = request.param
    arrays, (sizes, sets) = golden(name), VIEWS[name]
    objects, images = Objects(count=arrays["selected_12"].shape[1]), []
    for i in range(len(arrays["image_size"])):
        boxes = proposals(arrays, i)
        pairs: dict[int, tuple[Listed, Listed]] = {}
        for pair in (2, 3):
            first, other = cut(arrays, i, 1), cut(arrays, i, pair)
            seen = seen_by_both(boxes, first, other, objects.min_visible)
            pairs[pair - 1] = select(boxes, seen, first, other, draws(arrays, i, pair, len(boxes)), objects)
        images.append(by_view(pairs, list(sets.values())))
    views = []
    for v, size in enumerate(sizes):
        boxes, ids = (torch.from_numpy(np.stack(column)) for column in zip(*(image[v] for image in images)))
        cuts = [cut(arrays, i, v + 1) for i in range(len(images))]
        crop = torch.tensor([c.box for c in cuts], dtype=torch.float32)
        image = torch.zeros(1).expand(len(cuts), 3, size, size)
        views.append(View(image, crop, torch.tensor([c.flip for c in cuts]), boxes.float(), ids))
    return name, arrays, views


def test_which_proposals_views_share(golden) -> None:
    """Breaks when sharing the border column counts, or boxes are compared with an exclusive edge."""
    for name in VIEWS:
        arrays = golden(name)
        for i, count in enumerate(arrays["n_proposals"].tolist()):
            for pair in (2, 3):
                seen = seen_by_both(proposals(arrays, i), cut(arrays, i, 1), cut(arrays, i, pair), 0)
                want = arrays[f"overlap_1{pair}"][i]
                count = max(count, 1)  # the whole image, where nothing was proposed
                assert (seen[:count] == want[:count]).all() and not want[count:].any()


def sets_of(name: str, views: list[View]) -> Iterator[tuple[str, int, View, slice]]:
    """The name of every set of boxes in the file, its view, and its columns there."""
    count = views[1].objects.shape[1]
    for pair, number in VIEWS[name][1].items():
        yield f"boxes1_{pair}", 0, views[0], slice(count * (number - 1), count * number)
    for v, view in enumerate(views[1:], start=1):
        yield f"boxes{v + 1}", v, view, slice(0, count)


def test_boxes_in_shares_of_the_view(drawn) -> None:
    """Breaks at any step from selection to flip: jitter, clip, convention, padding, ids."""
    name, arrays, views = drawn
    for key, _, view, columns in sets_of(name, views):
        shares = view.place(view.objects)[:, columns] / view.width
        torch.testing.assert_close(shares.double(), t(arrays[key][..., :4]), rtol=0, atol=2e-6, msg=key)
        assert (view.ids[:, columns].numpy() % BLOCK == arrays[key][..., 4]).all(), key


def test_trap_10_levels_and_matches_across_them(drawn) -> None:
    """Breaks when levels are chosen from mirrored or unrounded boxes, or one dummy serves two views."""
    name, arrays, views = drawn
    method = Config(objects=Objects(count=views[1].objects.shape[1]), width=4, hidden=4).build(
        TinyEncoder(4, fpn=True)
    )
    read = [method.read(view, place)[1] for place, view in enumerate(views)]
    per_set = read[1].shape[1]
    for key, place, _, columns in sets_of(name, views):
        first = columns.start * per_set // views[1].objects.shape[1]
        ids = read[place][:, first : first + per_set].numpy()
        assert (np.where(ids > 0, ids % BLOCK, ids) == arrays[f"level_ids_{key}"]).all(), key
    for pair, number in VIEWS[name][1].items():
        match = read[0][:, :, None] == read[int(pair[1]) - 1][:, None]
        inside = match[:, per_set * (number - 1) : per_set * number]
        assert (inside.numpy() == arrays[f"match_{pair}"]).all() and inside.sum() == match.sum(), pair


def test_whole_pixels_before_the_flip(drawn) -> None:
    """Breaks when the level of a box is chosen from other pixels than the official ones."""
    name, arrays, views = drawn
    for key, _, view, columns in sets_of(name, views):
        straight = View(view.image, view.crop, torch.zeros_like(view.flip), view.objects)
        exact = straight.place(view.objects.double())[:, columns].numpy()
        want = arrays[f"pixel_{key}"]
        off = np.abs(np.trunc(exact) - want[..., :4])
        near = np.abs(exact - np.round(exact)) < 1e-4  # may truncate one lower
        assert (off <= near).all() and (view.ids[:, columns].numpy() % BLOCK == want[..., 4]).all(), key


def test_same_objects_are_paired_for_drawing(drawn) -> None:
    """Breaks when `show` would draw boxes of two objects in one colour."""
    _, arrays, views = drawn
    for v, view in enumerate(views[1:], start=1):
        regions, ids = same_objects(views[0], view), arrays[f"boxes{v + 1}"][..., 4]
        assert regions.keep.all()
        key = f"boxes1_1{v + 1}"
        for i, row in enumerate(ids):
            first = [
                arrays[key][i, :, 4].tolist().index(x) if x in arrays[key][i, :, 4] else None for x in row
            ]
            for r, column in enumerate(first):
                if column is not None:
                    got = regions.a[i, r].double() / views[0].width
                    torch.testing.assert_close(got, t(arrays[key][i, column, :4]), rtol=0, atol=2e-6)


def test_loss(golden) -> None:
    """Breaks when matches are averaged over the batch, or the 1e-6 is left out."""
    arrays = golden("soco_loss")
    method = Config(width=4, hidden=4).build(TinyEncoder(4, fpn=True))
    names = [n.removeprefix("grad_") for n in arrays if n.startswith("grad_")]
    p = {n: t(arrays[n]).requires_grad_() for n in names}
    z = {n.replace("pred", "proj"): t(arrays[n.replace("pred", "proj")]) for n in names}
    terms = []
    for other in ("2", "3"):
        match = torch.from_numpy(arrays[f"match_1{other}"]) > 0
        terms.append(method.compare(p[f"pred1_1{other}"], z[f"proj{other}"], match))
        terms.append(method.compare(p[f"pred{other}"], z[f"proj1_1{other}"], match.mT))
    torch.testing.assert_close(torch.stack(terms), t(arrays["terms"]), rtol=1e-12, atol=1e-12)
    total = torch.stack(terms).sum()
    assert total.item() == pytest.approx(float(arrays["total"]), rel=1e-12)
    total.backward()
    for n in names:  # stored in float32
        torch.testing.assert_close(p[n].grad, t(arrays[f"grad_{n}"]), rtol=1e-6, atol=1e-9, msg=n)


def fill(parameters: dict[str, nn.Parameter], names: list[str], *, seed: int) -> None:
    """The golden file's rule for weights."""
    for i, name in enumerate(names):
        if (parameter := parameters.get(name)) is None:
            continue
        r = torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(seed + i), dtype=torch.float32
        )
        r = r.double()
        small = 1 + 0.1 * r if name.endswith("weight") else 0.1 * r
        parameter.data.copy_((r * math.sqrt(2 / r[0].numel()) if r.dim() > 1 else small).float())


def official(name: str) -> str:
    """A tensor's name in the official code, from its name in the method."""
    if name.startswith("encoder.body."):
        return name.replace("encoder.body.", "encoder.")
    if name.startswith("encoder.fpn."):
        _, _, kind, level, part, tensor = name.split(".")
        kinds = {"inner_blocks": "lateral_convs", "layer_blocks": "fpn_convs"}
        return f"neck.{kinds[kind]}.{level}.{('conv', 'bn')[int(part)]}.{tensor}"
    parts = name.split(".")
    if ".box_head." in name:
        conv = int(parts[3]) + 1
        layer = f"conv{conv}" if parts[4] == "0" and len(parts) > 5 else f"bn{conv}"
        return f"head.{layer}.{parts[-1]}" if len(parts) > 5 else f"head.fc1.{parts[-1]}"
    module = "predictor" if parts[0] == "predictor" else "projector"
    return f"{module}.{ {'1': 'linear1', '2': 'bn1', '4': 'linear2'}[parts[-2]] }.{parts[-1]}"


def full_views(arrays: Arrays) -> tuple[View, ...]:
    """The file's images and boxes; ids of the two pairs are apart, as the worker leaves them."""
    views = []
    for v, keys in enumerate((("boxes1_12", "boxes1_13"), ("boxes2",), ("boxes3",))):
        image = t(arrays[f"image{v + 1}"]) / 127.5 - 1
        count, side = len(image), image.shape[-1]
        apart = [BLOCK * (i if v == 0 else v - 1) for i in range(len(keys))]
        boxes = torch.cat([t(arrays[key][..., :4]) * side for key in keys], dim=1)
        ids = torch.cat([torch.from_numpy(arrays[k][..., 4]).long() + o for k, o in zip(keys, apart)], dim=1)
        crop = torch.tensor([[0.0, 0, side, side]]).expand(count, 4)
        views.append(View(image, crop, torch.zeros(count, dtype=torch.bool), boxes, ids))
    return tuple(views)


def full_model(arrays: Arrays) -> tuple[SoCo, dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """The model with the file's weights; its parameters and its target's by their official names.

    The file's levels do not follow from its boxes: they are read off its matches.
    """
    names = [str(n) for n in arrays["param_names"]]
    shapes = dict(zip(names, arrays["param_ndim_shape"].tolist()))
    hidden, width = shapes["projector.linear1.weight"][0], shapes["projector.linear2.weight"][0]
    count, m0 = arrays["boxes2"].shape[1], float(arrays["schedule"][2])
    config = Config(objects=Objects(count=count), hidden=hidden, width=width, momentum=m0)
    method = config.build(build_encoder(EncoderConfig(backbone="resnet50", fpn=True))).double()
    trained = {
        official(n.removeprefix("student.")): p
        for n, p in method.named_parameters()
        if not n.startswith("teacher")
    }
    target = {official(n): p for n, p in method.teacher.network.named_parameters()}
    assert trained.keys() == set(names)
    levels = levels_of_matches(arrays)
    method.levels = lambda view: levels[view.ids.shape[1], view.width]
    fill(trained, names, seed=5000)
    fill(target, names, seed=6000)
    return method, trained, target


def levels_of_matches(arrays: Arrays) -> dict[tuple[int, int], Tensor]:
    """By number of boxes and side of each view: rows and columns run level by level, box by box."""
    first, others = [], {}
    for v, key in ((2, "match_12"), (3, "match_13")):
        match = torch.from_numpy(arrays[key]).bool()
        count = match.shape[1] // 4
        of_rows, of_columns = (m.any(2).unflatten(1, (4, count)).int() for m in (match, match.mT))
        assert (of_rows.sum(1) == 1).all() and (of_columns.sum(1) == 1).all()
        first.append(of_rows.argmax(1))
        others[count, arrays[f"image{v}"].shape[-1]] = of_columns.argmax(1)
    return others | {(2 * count, arrays["image1"].shape[-1]): torch.cat(first, dim=1)}


def test_full_model(golden, double: None) -> None:
    """Breaks when anything between pixels and gradients is not SoCo's: norms per level and pair, pools, matches."""
    arrays = golden("soco_full_model")
    method, trained, target = full_model(arrays)
    names, views = [str(n) for n in arrays["param_names"]], full_views(arrays)
    ids = [method.read(view, i)[1] for i, view in enumerate(views)]
    rows = ids[1].shape[1]
    for i, pair in enumerate(("12", "13"), start=1):
        match = ids[0][:, :, None] == ids[i][:, None]
        assert (match[:, rows * (i - 1) : rows * i].numpy() == arrays[f"match_{pair}"]).all()

    step, total, _ = arrays["schedule"].tolist()
    method.after_step(int(step) - 1, int(total))  # the update that opens forward number `step`
    sums = {n: float(p.sum()) for n, p in target.items()}
    for n, want in zip(names, arrays["target_sum_after"].tolist()):
        assert (n not in sums) if math.isnan(want) else sums[n] == pytest.approx(want, rel=1e-9, abs=1e-9), n

    found = watched(method, arrays)
    out = method(Batch(views, torch.arange(len(views[0].image)), {}))
    for key, got in found.items():  # rows are stored in float32
        want = t(arrays[key.partition(" ")[0]])
        want = want[int(key[-1])] if " " in key else want
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7, msg=key)
    terms = torch.stack([out[k] for k in ("1_to_2", "2_to_1", "1_to_3", "3_to_1")])
    torch.testing.assert_close(terms, t(arrays["terms"]), rtol=1e-8, atol=1e-8)
    assert out["loss"].item() == pytest.approx(float(arrays["loss"]), rel=1e-8)
    out["loss"].backward()
    norms, sums_ = (torch.stack([f(trained[n].grad) for n in names]) for f in (torch.norm, torch.sum))
    want = t(arrays["grad_norm"])  # zero up to rounding for biases in front of a BatchNorm
    floor = 1e-10 * want.max()
    assert ((norms - want).abs() <= 1e-7 * want + floor).all()
    assert ((sums_ - t(arrays["grad_sum"])).abs() <= 1e-7 * want + floor).all()
    assert all(p.grad is None for p in target.values())
    buffers = dict(method.named_buffers())
    for key in (k for k in arrays if k.startswith("buffer_")):
        torch.testing.assert_close(buffers[ours(key)], t(arrays[key]), rtol=1e-8, atol=1e-9, msg=key)


def ours(key: str) -> str:
    """The name in the method of a running statistic of the file."""
    name = key.removeprefix("buffer_")
    module, _, rest = name.partition("_")
    branch = "student."
    if rest.startswith("k_"):
        branch, rest = "teacher.network.", rest.removeprefix("k_")
    layer, _, statistic = rest.rpartition("_running_")
    if module == "encoder":
        return f"{branch}encoder.body.{layer.replace('_', '.')}.running_{statistic}"
    if module == "head":
        return f"{branch}taps.box.box_head.{int(layer[2:]) - 1}.1.running_{statistic}"
    place = "predictor" if module == "predictor" else f"{branch}taps.box.project"
    return f"{place}.2.running_{statistic}"


def watched(method: SoCo, arrays: Arrays) -> dict[str, Tensor]:
    """Filled by the next forward with what the file states of its way, keyed by the file's names."""
    embed, found, view = method.embed, {}, iter(range(3))

    def embed_and_keep(*args: object) -> tuple[Tensor, ...]:
        p, z, ids = embed(*args)
        rows = arrays["proj2"].shape[1]
        kept = (("pred1_12", p[:, :rows]), ("proj2", z))[args[1]] if args[1] < 2 else None
        if kept is not None:
            found[kept[0]] = F.normalize(kept[1], dim=-1)
        return p, z, ids

    def keep_maps(module: nn.Module, args: object, maps: dict[str, Tensor]) -> None:
        at = next(view)
        for key, prefix in (("backbone_stats", "c"), ("fpn_stats", "p")):
            levels = [maps[f"{prefix}{i}"] for i in range(2, 6)]
            found[f"{key} {at}"] = torch.stack([torch.stack([x.mean(), x.std(correction=0)]) for x in levels])

    method.embed = embed_and_keep
    method.student.encoder.register_forward_hook(keep_maps)
    return found


def test_momentum(golden) -> None:
    """Breaks when the teacher's schedule starts at another step or rises along another curve."""
    for m0, total, step, want in golden("soco_schedules")["momentum"].tolist():
        assert cosine_momentum(m0, int(step), int(total)) == pytest.approx(want, rel=1e-9)
