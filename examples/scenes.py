"""Rendered scenes with captions, in the manner of the paper's CLEVR-cap.

Each scene has a few shaded objects (cube, sphere, cylinder; two sizes, two materials, eight
colours) on a grey floor with shadows. The caption lists them from left to right::

    Total 2 objects: a small red metal cube, a large blue rubber sphere.

A scene is a function of its seed and index alone, so nothing needs to be stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["SceneDataset", "caption_of", "draw_scene"]

COLORS = {
    "gray": (110, 110, 110),
    "red": (190, 40, 40),
    "blue": (45, 75, 200),
    "green": (40, 130, 40),
    "brown": (130, 80, 30),
    "purple": (130, 45, 190),
    "cyan": (50, 200, 205),
    "yellow": (240, 225, 60),
}
SHAPES = ("cube", "sphere", "cylinder")
MATERIALS = ("rubber", "metal")
SIZES = {"small": 0.075, "large": 0.13}
_LIGHT = np.array([-0.45, -0.7, 0.55]) / np.linalg.norm([-0.45, -0.7, 0.55])


@dataclass(frozen=True)
class Thing:
    """One object: its words, and its centre and radius as shares of the picture's side."""

    size: str
    color: str
    material: str
    shape: str
    x: float
    y: float

    @property
    def radius(self) -> float:
        return SIZES[self.size]


def _place(rng: np.random.Generator, count: int) -> list[Thing]:
    """Objects that overlap little; fewer than asked when there is no room."""
    things: list[Thing] = []
    for _ in range(count * 30):
        if len(things) == count:
            break
        thing = Thing(
            str(rng.choice(list(SIZES))),
            str(rng.choice(list(COLORS))),
            str(rng.choice(MATERIALS)),
            str(rng.choice(SHAPES)),
            float(rng.uniform(0.14, 0.86)),
            float(rng.uniform(0.3, 0.84)),
        )
        gap = [
            np.hypot(thing.x - t.x, (thing.y - t.y) * 1.2) - 0.85 * (thing.radius + t.radius)
            for t in things
        ]
        # Objects at nearly the same x would make the order of the caption a coin toss.
        apart = all(abs(thing.x - t.x) > 0.03 for t in things)
        if apart and all(distance > 0 for distance in gap):
            things.append(thing)
    return things


def _surface(
    thing: Thing, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Mask and unit normals of an object over local coordinates, 1 being its radius."""
    normal = np.zeros((*x.shape, 3))
    if thing.shape == "sphere":
        inside = x**2 + y**2 < 1
        normal[..., 0], normal[..., 1] = x, y
        normal[..., 2] = np.sqrt(np.clip(1 - x**2 - y**2, 0, None))
        return inside, normal
    if thing.shape == "cylinder":
        top = (x / 0.85) ** 2 + ((y + 0.7) / 0.28) ** 2 < 1
        bottom = (x / 0.85) ** 2 + ((y - 0.7) / 0.28) ** 2 < 1
        body = (np.abs(x) < 0.85) & (np.abs(y) < 0.7)
        side = np.clip(x / 0.85, -1, 1)
        normal[..., 0], normal[..., 2] = side, np.sqrt(1 - side**2)
        normal[top] = (0, -0.95, 0.31)
        return top | body | bottom, normal
    # A cube seen from above, turned by an eighth: a rhombus on two parallelograms.
    top = np.abs(x) / 0.95 + np.abs(y + 0.55) / 0.42 < 1
    lower = np.abs(x) / 0.95 + np.abs(y - 0.5) / 0.42 < 1
    body = (np.abs(x) < 0.95) & (y > -0.55) & (y < 0.5)
    normal[x < 0] = (-0.75, 0.15, 0.65)
    normal[x >= 0] = (0.75, 0.15, 0.65)
    normal[top] = (0, -0.95, 0.31)
    return top | body | lower, normal


def _paint(canvas: NDArray[np.float64], thing: Thing) -> None:
    side = canvas.shape[0]
    radius = thing.radius * side
    y, x = np.mgrid[:side, :side] + 0.5
    x, y = (x - thing.x * side) / radius, (y - thing.y * side) / radius
    near = (np.abs(x) < 2.2) & (np.abs(y) < 2.2)
    rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    x, y = x[window], y[window]
    part = canvas[window]
    # The shadow falls to the lower right and fades outwards.
    shadow = np.exp(-(((x - 0.35) / 1.1) ** 2 + ((y - 0.85) / 0.4) ** 2) * 1.5)
    part *= 1 - 0.45 * shadow[..., None]
    inside, normal = _surface(thing, x, y)
    light = np.clip(normal @ _LIGHT, 0, 1)
    metal = thing.material == "metal"
    diffuse = (0.35 + 0.4 * light) if metal else (0.45 + 0.55 * light)
    # Blinn-Phong with the eye straight above the picture.
    half = _LIGHT + np.array([0.0, 0.0, 1.0])
    half /= np.linalg.norm(half)
    glint = np.clip(normal @ half, 0, 1) ** (30 if metal else 6) * (0.9 if metal else 0.08)
    colour = np.array(COLORS[thing.color]) / 255 * diffuse[..., None] + glint[..., None]
    if metal:  # a dull mirror image of the floor
        colour += 0.12 * np.clip(normal[..., 1:2], 0, 1)
    part[inside] = np.clip(colour, 0, 1)[inside]


def draw_scene(seed: int, index: int, size: int = 128) -> tuple[NDArray[np.uint8], list[Thing]]:
    """Render one scene.

    Returns
    -------
    image : (size, size, 3) uint8 array
    things : list of Thing
        From left to right.
    """
    rng = np.random.default_rng([seed, index])
    things = _place(rng, int(rng.integers(1, 5)))
    fine = size * 2  # two samples per pixel and axis smooth the edges
    y, x = np.mgrid[:fine, :fine] / fine
    floor = 0.62 + 0.16 * y - 0.25 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    canvas = np.repeat(floor[..., None], 3, axis=2)
    for thing in sorted(things, key=lambda t: t.y):  # what is nearer covers what is behind
        _paint(canvas, thing)
    canvas = canvas.reshape(size, 2, size, 2, 3).mean((1, 3))
    canvas += rng.normal(0, 0.008, canvas.shape)
    return (np.clip(canvas, 0, 1) * 255).astype(np.uint8), sorted(things, key=lambda t: t.x)


def caption_of(things: list[Thing]) -> str:
    """Caption in the paper's form."""
    parts = [f"a {t.size} {t.color} {t.material} {t.shape}" for t in things]
    return f"Total {len(things)} objects: {', '.join(parts)}."


class SceneDataset:
    """Scenes as a map-style dataset of ``{"image", "caption"}``."""

    def __init__(self, length: int, *, seed: int = 0, size: int = 128) -> None:
        self.length = length
        self.seed = seed
        self.size = size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, object]:
        image, things = draw_scene(self.seed, index, self.size)
        return {"image": image, "caption": caption_of(things)}
