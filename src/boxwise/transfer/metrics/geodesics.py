"""How far apart two points of a body's surface are, along the surface: what DensePose is measured in."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from boxwise.data.densepose import PARTS

NORMS = (
    *(0.351, 0.351),  # torso
    *(0.107, 0.107, 0.126, 0.126),  # hands, feet
    *(0.237, 0.237, 0.237, 0.237),  # upper legs
    *(0.173, 0.173, 0.173, 0.173),  # lower legs
    *(0.142, 0.142, 0.142, 0.142),  # upper arms
    *(0.128, 0.128, 0.128, 0.128),  # lower arms
    *(0.150, 0.150),  # head
)
"""Mean distance between two points of each part, in metres: the official ones, which eight groups of parts share."""

ARRAYS = (
    "an .npz with distances (the strict lower triangle of the table between vertices, row by row), part (1 to 24), uv "
    "(two columns, 0 to 1) and vertex (its row in that table, from 0) of each sample of the surface, and if they are "
    "not the official ones norms (24 mean distances)"
)


@dataclass(frozen=True)
class Geodesics:
    """A mesh of V vertices and S samples of its surface; a vertex on a seam is a sample of several parts."""

    distances: Float[NDArray[np.floating], " pairs"]
    """Between vertices i > j at i * (i - 1) / 2 + j."""
    part: Int[NDArray[np.integer], " S"]
    uv: Float[NDArray[np.floating], "S 2"]
    vertex: Int[NDArray[np.integer], " S"]
    norms: Float[NDArray[np.floating], " 24"]

    def nearest(
        self, part: Int[NDArray[np.integer], " n"], uv: Float[NDArray[np.floating], "n 2"]
    ) -> Int[NDArray[np.integer], " n"]:
        """The vertex of the sample of that part that is closest in u and v; -1 where `part` is none."""
        found = np.full(len(part), -1, dtype=np.int64)
        for number in range(1, PARTS + 1):
            asked, known = np.flatnonzero(part == number), np.flatnonzero(self.part == number)
            if asked.size:
                apart = ((uv[asked, None] - self.uv[None, known]) ** 2).sum(axis=2)
                found[asked] = self.vertex[known[apart.argmin(axis=1)]]
        return found

    def between(
        self, a: Int[NDArray[np.integer], " n"], b: Int[NDArray[np.integer], " n"]
    ) -> Float[NDArray[np.floating], " n"]:
        """Distances of vertices in pairs; infinite where one is -1."""
        high, low = np.maximum(a, b).astype(np.int64), np.minimum(a, b).astype(np.int64)
        apart = np.where(low < 0, np.inf, 0.0)
        differ = np.flatnonzero((high != low) & (low >= 0))
        apart[differ] = self.distances[high[differ] * (high[differ] - 1) // 2 + low[differ]]
        return apart


def load_geodesics(file: Path) -> Geodesics:
    """The mesh in `file`, an .npz with the arrays that ARRAYS names. Code in it is not run.

    DensePose's own files hold the same: `distances` is their Pdist_matrix as it is, `part` their Part_ID_subdiv, `uv`
    their U_subdiv and V_subdiv, `vertex` the index of SMPL_SUBDIV_TRANSFORM less 1. Raises ValueError where something
    is missing or contradicts the rest.
    """
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
    except (
        OSError,
        ValueError,
        EOFError,
        TypeError,
        zipfile.BadZipFile,
    ) as error:  # TypeError: a single array
        raise ValueError(f"{file}: cannot be read ({error}); --geodesics takes {ARRAYS}") from None
    if missing := {"distances", "part", "uv", "vertex"} - arrays.keys():
        raise ValueError(f"{file}: lacks {', '.join(sorted(missing))}; --geodesics takes {ARRAYS}")
    if words := [name for name, held in arrays.items() if held.dtype.kind not in "fiu"]:
        raise ValueError(f"{file}: {', '.join(sorted(words))}: no numbers; --geodesics takes {ARRAYS}")
    part, vertex = arrays["part"].ravel().astype(np.int64), arrays["vertex"].ravel().astype(np.int64)
    distances, uv = arrays["distances"].ravel(), arrays["uv"].astype(np.float64)
    norms = arrays.get("norms", np.array(NORMS)).ravel().astype(np.float64)
    wrong = _wrong(distances, part, uv, vertex, norms)
    if wrong:
        raise ValueError(f"{file}: {wrong}; --geodesics takes {ARRAYS}")
    return Geodesics(distances, part, uv, vertex, norms)


def _wrong(
    distances: NDArray[np.floating],
    part: NDArray[np.int64],
    uv: NDArray[np.float64],
    vertex: NDArray[np.int64],
    norms: NDArray[np.float64],
) -> str:
    """The first thing that cannot be; nothing where all fits."""
    vertices = int(vertex.max(initial=-1)) + 1
    if uv.shape != (len(part), 2) or vertex.shape != part.shape:
        return f"{len(part)} parts, {len(vertex)} vertices and uv of {uv.shape} are not of the same samples"
    if set(part.tolist()) != set(range(1, PARTS + 1)):
        return f"its parts are not 1 to {PARTS}, all of them"
    if vertex.min() < 0 or len(distances) < vertices * (vertices - 1) // 2:
        return f"{len(distances)} distances are not those of all pairs of {vertices} vertices"
    if not (distances.min(initial=0) >= 0 and np.isfinite(distances.max(initial=0))):  # NaN is neither
        return "its distances are not all 0 or more"
    if not np.isfinite(uv).all():
        return "its uv are not all numbers"
    if norms.shape != (PARTS,) or not (norms > 0).all():
        return f"norms are not {PARTS} positive numbers"
    return ""
