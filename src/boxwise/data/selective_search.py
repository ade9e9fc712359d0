"""Selective search: segments of an image and all that their greedy merging makes, as boxes.

Uijlings et al., IJCV 2013, in the form of the Python package `selectivesearch`, which SoCo took over: Felzenszwalb's
segments, then the two most similar neighbours become one region until no neighbours are left:

    while pairs:
        i, j = the pair of highest similarity (of equals, the pair that was added last)
        t = i and j together
        pairs = pairs without i and j, and (t, n) for every other n that was a neighbour of i or j

    similarity = colour + texture + size + fill
    colour, texture = sum(min(h_i, h_j)) over histograms: 3 x 25 bins of HSV, 3 x 10 bins of LBP(8, 1) codes
    size = 1 - (|i| + |j|) / |image|
    fill = 1 - (box of both - |i| - |j|) / |image|

Boxes equal the package's, also where it is odd. Its histograms have fixed ranges, 0..255 for HSV and 0..1 for LBP. On
an image in [0, 1] all HSV values fall into the first bin, so the colour term is 3 for every pair, and of the 256 LBP
codes only 0 and 1 are counted (`values="unit"`). SoCo's own script gave the search bytes and counted all codes
(`values="bytes"`). Neighbours are regions one of whose boxes has a corner strictly inside the earlier one's box. And a
box ends at its last pixel, without the one that would make it half-open.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8
from numpy.typing import NDArray

Values = Literal["unit", "bytes"]
COLOUR_BINS, TEXTURE_BINS = 25, 10
DIAGONAL = 0.70711
"""cos(45 degrees) as scikit-image's LBP rounds it."""


def selective_search(
    image: UInt8[np.ndarray, "H W 3"] | Float64[np.ndarray, "H W 3"],
    *,
    scale: float = 300.0,
    sigma: float = 0.9,
    min_size: int = 100,
    values: Values = "unit",
) -> Int64[np.ndarray, "N 4"]:
    """Boxes (left, top, width, height) of the segments, then of each merge in its turn. Equal boxes all stay.

    Floats are in [0, 1]. Bytes become such floats as scikit-image makes them, by the factor 1/255: to divide by 255
    rounds some values otherwise, and that alone gives a third of all photos other boxes.
    """
    unit = image if image.dtype == np.float64 else image * (1 / 255)
    segments = segment(unit, scale=scale, sigma=sigma, min_size=min_size)
    sizes = np.bincount(segments.ravel())
    if values == "unit":
        colour = np.full((len(sizes), 1), 3.0)
        texture = first_codes(unit, segments)
    else:
        colour, texture = byte_histograms(unit, segments, len(sizes))
    found = merge_all(corners(segments), sizes, colour, texture / sizes[:, None], segments.size)
    return np.concatenate([found[:, :2], found[:, 2:] - found[:, :2]], axis=1)


def segment(
    unit: Float64[np.ndarray, "H W 3"], *, scale: float, sigma: float, min_size: int
) -> Int64[np.ndarray, "H W"]:
    """Felzenszwalb's segments, numbered by their first pixel in reading order."""
    from skimage.segmentation import felzenszwalb

    return felzenszwalb(unit, scale=scale, sigma=sigma, min_size=min_size)


def corners(segments: Int64[np.ndarray, "H W"]) -> Int64[np.ndarray, "S 4"]:
    """First and last column and row of each segment: left, top, right, bottom, all inclusive."""
    from scipy.ndimage import find_objects

    found = find_objects((segments + 1).astype(np.int32))
    return np.array([(x.start, y.start, x.stop - 1, y.stop - 1) for y, x in found], dtype=np.int64)


def first_codes(
    unit: Float64[np.ndarray, "H W 3"], segments: Int64[np.ndarray, "H W"]
) -> Float64[np.ndarray, "S 6"]:
    """Per segment and channel, pixels of LBP code 0 (below all eight neighbours) and 1 (below all but the right).

    Equal to counting the codes of `skimage.feature.local_binary_pattern(channel, 8, 1.0)`, at an eighth of its
    cost: only pixels whose neighbours above, below and to the left are darker need their diagonals.
    """
    count, labels = int(segments.max()) + 1, segments.ravel()
    columns = []
    for channel in range(3):
        zeros, ones = _zeros_and_ones(np.ascontiguousarray(unit[..., channel]))
        columns += [np.bincount(labels[where], minlength=count) for where in (zeros, ones)]
    return np.stack(columns, axis=1).astype(np.float64)


def _zeros_and_ones(plane: Float64[np.ndarray, "H W"]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Flat indices of the pixels of LBP code 0, and of those of code 1. Outside the image lies 0."""
    height, width = plane.shape
    wide = width + 2
    padded = np.zeros((height + 2, wide))
    padded[1:-1, 1:-1] = plane
    dark = (padded[:-2, 1:-1] < plane) & (padded[2:, 1:-1] < plane) & (padded[1:-1, :-2] < plane)
    flat = np.flatnonzero(dark)
    for up, left in ((True, True), (False, True), (True, False), (False, False)):
        flat = flat[_diagonal(padded, flat, width, up=up, left=left) < plane.ravel()[flat]]
    row, column = np.divmod(flat, width)
    right = padded.ravel()[(row + 1) * wide + column + 2]
    one = right >= plane.ravel()[flat]
    return flat[~one], flat[one]


def _diagonal(
    padded: Float64[np.ndarray, "h w"], flat: Int64[np.ndarray, " n"], width: int, *, up: bool, left: bool
) -> Float64[np.ndarray, " n"]:
    """The picture at DIAGONAL up or down and left or right of pixels, to the last bit as scikit-image blends it."""
    row, column = np.divmod(flat, width)
    y = row + (-DIAGONAL if up else DIAGONAL)
    x = column + (-DIAGONAL if left else DIAGONAL)
    top, start = np.floor(y), np.floor(x)
    down, across = y - top, x - start
    wide = padded.shape[1]
    at = (row + (0 if up else 1)) * wide + column + (0 if left else 1)
    cells = padded.ravel()
    above = (1 - across) * cells[at] + across * cells[at + 1]
    below = (1 - across) * cells[at + wide] + across * cells[at + wide + 1]
    return (1 - down) * above + down * below


def byte_histograms(
    unit: Float64[np.ndarray, "H W 3"], segments: Int64[np.ndarray, "H W"], count: int
) -> tuple[Float64[np.ndarray, "S c"], Float64[np.ndarray, "S t"]]:
    """SoCo's: brightness in 25 bins, shares, with hue and saturation in one bin each; LBP codes in 10 bins, counts."""
    from skimage.feature import local_binary_pattern

    labels, image = segments.ravel(), np.round(unit * 255)
    planes = [local_binary_pattern(image[..., c].astype(np.uint8), 8, 1.0) for c in range(3)]
    texture = [_counts(labels, plane.ravel(), count, TEXTURE_BINS) for plane in planes]
    bright = _counts(labels, image.max(axis=2).ravel(), count, COLOUR_BINS)
    ones = np.ones((count, 2))
    colour = np.concatenate([ones, bright / bright.sum(axis=1, keepdims=True)], axis=1)
    return colour, np.concatenate(texture, axis=1)


def _counts(
    labels: Int64[np.ndarray, " n"], values: Float64[np.ndarray, " n"], count: int, bins: int
) -> Float64[np.ndarray, "S b"]:
    """Pixels per segment and bin of [0, 255], the last bin with its upper edge."""
    edges = np.linspace(0.0, 255.0, bins + 1)
    place = np.minimum(np.searchsorted(edges, values, side="right") - 1, bins - 1)
    return np.bincount(labels * bins + place, minlength=count * bins).reshape(count, bins).astype(np.float64)


def neighbours(box: Int64[np.ndarray, "S 4"]) -> Bool[np.ndarray, "S S"]:
    """[a, b], b after a: a corner of b's box lies strictly inside a's. A small a inside b does not count."""
    left, top, right, bottom = (box[:, None, k] for k in range(4))
    within_x = [(left < x) & (x < right) for x in (box[None, :, 0], box[None, :, 2])]
    within_y = [(top < y) & (y < bottom) for y in (box[None, :, 1], box[None, :, 3])]
    return np.triu((within_x[0] | within_x[1]) & (within_y[0] | within_y[1]), k=1)


def merge_all(
    box: Int64[np.ndarray, "S 4"],
    size: Int64[np.ndarray, " S"],
    colour: Float64[np.ndarray, "S c"],
    texture: Float64[np.ndarray, "S t"],
    area: int,
) -> Int64[np.ndarray, "N 4"]:
    """The boxes of all segments, then those of all merges, inclusive corners.

    A merged region takes the row of one of its two; the other's falls empty. Equal similarities are told apart by
    when their pair was added, as in the package's ordered dictionary.
    """
    count = len(box)
    near = neighbours(box)
    first, second = np.nonzero(near)
    alike = np.full((count, count), -np.inf)
    age = np.full((count, count), -1, dtype=np.int64)
    box, size, colour, texture = box.copy(), size.copy(), colour.copy(), texture.copy()
    alike[first, second] = alike[second, first] = similarity(box, size, colour, texture, first, second, area)
    age[first, second] = age[second, first] = np.arange(len(first))
    found, newest = [box.copy()], len(first)
    while count:
        top = alike.max()
        if top == -np.inf:
            break
        same = np.flatnonzero(alike == top)
        i, j = divmod(int(same[age.ravel()[same].argmax()]), count)
        size_i, size_j = size[i], size[j]
        for histogram in (colour, texture):
            histogram[i] = (histogram[i] * size_i + histogram[j] * size_j) / (size_i + size_j)
        size[i] = size_i + size_j
        box[i, :2] = np.minimum(box[i, :2], box[j, :2])
        box[i, 2:] = np.maximum(box[i, 2:], box[j, 2:])
        found.append(box[i : i + 1].copy())
        others = _others(age, i, j)
        alike[[i, j]] = alike[:, [i, j]] = -np.inf
        age[[i, j]] = age[:, [i, j]] = -1
        alike[i, others] = alike[others, i] = similarity(box, size, colour, texture, i, others, area)
        age[i, others] = age[others, i] = np.arange(newest, newest + len(others))
        newest += len(others)
    return np.concatenate(found)


def _others(age: Int64[np.ndarray, "S S"], i: int, j: int) -> NDArray[np.int64]:
    """The neighbours of i or j, in the order of their pairs; one of both has the place of the older pair."""
    both = (age[i] >= 0) & (age[j] >= 0)
    older = np.where(both, np.minimum(age[i], age[j]), np.maximum(age[i], age[j]))
    older[[i, j]] = -1
    found = np.flatnonzero(older >= 0)
    return found[older[found].argsort()]


def similarity(
    box: Int64[np.ndarray, "S 4"],
    size: Int64[np.ndarray, " S"],
    colour: Float64[np.ndarray, "S c"],
    texture: Float64[np.ndarray, "S t"],
    a: NDArray[np.int64] | int,
    b: NDArray[np.int64],
    area: int,
) -> Float64[np.ndarray, " n"]:
    """Of regions a with regions b. Terms are added one by one, as the package adds them: equal to the last bit."""
    shared = [np.minimum(h[a], h[b]).cumsum(axis=-1)[..., -1] for h in (colour, texture)]
    both = size[a] + size[b]
    width = np.maximum(box[a, 2], box[b, 2]) - np.minimum(box[a, 0], box[b, 0])
    height = np.maximum(box[a, 3], box[b, 3]) - np.minimum(box[a, 1], box[b, 1])
    filled = 1.0 - (width * height - both) / area
    return shared[0] + shared[1] + (1.0 - both / area) + filled
