"""Where the organs of an abdomen are, how large, and how bright in the portal venous phase.

Sizes and places are roughly those of an adult, and differ from person to person.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tutorials.phantoms.shapes import Canvas, Ellipsoid, Point, Shape, Tube, tubes

__all__ = ["AIR", "ORGANS", "Person"]

ORGANS = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal and splenic veins",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
)
"""In the order of their labels, from 1."""

ENDLESS = math.inf
"""Half of the length of what reaches from one end of the volume to the other."""

ENHANCED = {
    "spleen": 128,
    "right kidney": 195,
    "left kidney": 195,
    "gallbladder": 8,
    "esophagus": 45,
    "liver": 108,
    "stomach": 30,
    "aorta": 165,
    "inferior vena cava": 145,
    "portal and splenic veins": 175,
    "pancreas": 90,
    "right adrenal gland": 72,
    "left adrenal gland": 72,
}
"""Hounsfield units."""

AIR, LUNG, FAT, MUSCLE, BOWEL, MARROW, BONE = -1000, -850, -100, 58, 35, 210, 480


class Person:
    """
    Paints one person.

    Args:
        canvas: what is painted on, in mm from the middle of the body, to the right, to the front, upwards.
        rng: draws what differs from person to person.
    """

    def __init__(self, canvas: Canvas, rng: np.random.Generator) -> None:
        self.canvas = canvas
        self.rng = rng
        self.scale = rng.uniform(0.93, 1.05, 3)
        self.contrast = rng.uniform(0.93, 1.07)
        self.fat = rng.uniform(0.9, 1.08)  # how far organs are from each other
        self.cavity = np.zeros(canvas.labels.shape, bool)
        self.lungs = np.zeros(canvas.labels.shape, bool)
        self.tops: list[Point] = []  # of the kidneys, beside them

    def paint(self) -> None:
        self._body()
        self._bones()
        self._bowel()
        self._upper_organs()
        self._stomach()
        self._kidneys()
        self._vessels()
        self._adrenal_glands()

    def ellipsoid(self, center: Point, radii: Point, lean: float = 0, jitter: float = 4) -> Ellipsoid:
        """As in everybody, but moved by up to `jitter` mm and up to 12 % larger or smaller."""
        moved = np.array(center) * self.scale * self.fat + self.rng.uniform(-jitter, jitter, 3)
        sized = np.array(radii) * self.scale * self.rng.uniform(0.88, 1.12, 3)
        return Ellipsoid(tuple(moved.tolist()), tuple(sized.tolist()), lean)

    def tube(self, points: Sequence[Point], radii: Sequence[float], jitter: float = 3) -> list[Tube]:
        shift, size = self.rng.uniform(-jitter, jitter, 3), self.rng.uniform(0.9, 1.12)
        moved = [tuple((np.array(point) * self.scale * self.fat + shift).tolist()) for point in points]
        return list(tubes(moved, [radius * size for radius in radii]))

    def organ(self, name: str, shapes: Sequence[Shape], without: Sequence[Shape] = ()) -> None:
        """Paint one of the `ORGANS`, under the lungs."""
        hounsfield = ENHANCED[name] * self.contrast + self.rng.uniform(-6, 6)
        self.canvas.paint(shapes, hounsfield, ORGANS.index(name) + 1, self.cavity & ~self.lungs, without)

    def _body(self) -> None:
        a, b, _ = 158 * self.scale
        b *= 0.68
        across = self.rng.uniform(12, 24)  # subcutaneous fat, in mm
        self.canvas.paint([Ellipsoid((0, -b - 330, 0), (400, 320, ENDLESS))], -300)  # the table
        self.canvas.paint([Ellipsoid((0, -b - 334, 0), (400, 320, ENDLESS))], AIR)
        self.canvas.paint([Ellipsoid((0, 0, 0), (a, b, ENDLESS))], FAT)
        self.canvas.paint([Ellipsoid((0, 0, 0), (a - across, b - across, ENDLESS))], MUSCLE)
        inside = Ellipsoid((0, 4, 0), (a - across - 16, b - across - 13, ENDLESS))
        self.cavity = inside.contains(self.canvas.points)
        self.wall = Ellipsoid((0, 2, 0), (a - across - 9, b - across - 7, ENDLESS))
        self.canvas.paint([inside], FAT)
        self._lungs()
        heart = self.ellipsoid((-18, 28, 128), (46, 42, 42))
        self.canvas.paint([heart], 130 * self.contrast, within=self.cavity)

    def _lungs(self) -> None:
        """Above two domes, one at each side of the heart."""
        top = ..., slice(int(np.searchsorted(self.canvas.axes[2], 10)), None)
        x, y, z = (points[top] for points in self.canvas.points)
        middle = Ellipsoid((-8, 15, 120), (52, 62, 55)).contains((x, y, z))
        right, left = np.array((84, 78)) + self.rng.uniform(-6, 6, 2)
        domes = np.where(x > 0, np.float32(right), np.float32(left)) - 0.011 * ((np.abs(x) - 62) ** 2 + (y - 12) ** 2)
        self.lungs[top] = self.cavity[top] & (z > domes) & ~middle
        self.canvas.intensity[self.lungs] = LUNG
        self.canvas.intensity[top][self.cavity[top] & middle] = MUSCLE

    def _bones(self) -> None:
        """Muscles beside the spine, the spine, and ribs in the wall."""
        for side in (-1, 1):
            self.canvas.paint([Ellipsoid((side * 34, -82, 0), (30, 20, ENDLESS))], MUSCLE)
            self.canvas.paint([self.ellipsoid((side * 40, -52, -90), (20, 19, 95), -0.05 * side)], MUSCLE)
        phase = self.rng.uniform(0, 34)
        around = self.canvas.box(Ellipsoid((0, -75, 0), (45, 55, ENDLESS)))
        x, y, z = points = tuple(each[around] for each in self.canvas.points)
        spine = self.canvas.intensity[around]
        disc = (z + phase) % 34 > 28
        level = Ellipsoid((0, -60, 0), (23, 18, ENDLESS)).level(points)
        spine[level <= 1] = BONE
        spine[level <= 0.8] = MARROW
        spine[(level <= 1) & disc] = 90
        canal = Ellipsoid((0, -86, 0), (10, 9, ENDLESS)).level(points)
        spine[(canal <= 1.9) & ~disc] = BONE - 100
        spine[canal <= 1] = 30
        spine[(np.abs(x) < 4) & (y < -95) & (y > -112) & ((z + phase) % 34 < 20)] = MARROW + 100

        ring = np.nonzero(np.abs(self.wall.level(self.canvas.points) - 1) < 0.06)
        x, y, z = (each[ring] for each in self.canvas.points)
        ribs = ((z + 0.55 * y + phase) % 27 < 9) & (z > -45 + np.maximum(y, 0) * 1.4)
        self.canvas.intensity[tuple(each[ribs] for each in ring)] = BONE - 150

    def _bowel(self) -> None:
        """Loops of the small bowel, the colon at both sides and across, some of it full of air."""
        colon = self.tube([(98, -12, -120), (100, -8, -20), (70, 40, -35), (-60, 45, -25)], [21, 20, 17, 17])
        colon += self.tube([(-60, 45, -25), (-104, -15, 5), (-104, -28, -120)], [17, 16, 17])
        self.canvas.paint(colon, BOWEL - 15, within=self.cavity)
        for each in colon[1:4]:
            (start, end), (first, last) = each.points, each.radii
            upper = [(x, y + 5, z) for x, y, z in (start, end)]
            self.canvas.paint(list(tubes(upper, (0.6 * first, 0.6 * last))), AIR + 80, within=self.cavity)
        for _ in range(34):
            center = self.rng.uniform((-78, -20, -125), (78, 60, -42))
            loop = Ellipsoid(tuple(center.tolist()), tuple(self.rng.uniform(12, 22, 3).tolist()))
            self.canvas.paint([loop], BOWEL + self.rng.uniform(-15, 40), within=self.cavity)

    def _upper_organs(self) -> None:
        gallbladder = self.ellipsoid((46, 42, -8), (14, 15, 24), 0.3)
        right = self.ellipsoid((74, 4, 30), (72, 80, 76))
        left = self.ellipsoid((6, 38, 48), (68, 38, 34))
        hollow = self.ellipsoid((16, -50, -14), (42, 48, 38))
        self.organ("liver", [right, left], [hollow])
        liver = self.canvas.labels == ORGANS.index("liver") + 1
        for _ in range(14):  # vessels inside, which are liver
            start = np.array((28, -12, 45)) + self.rng.uniform(-8, 8, 3)
            end = np.array((75, 5, 35)) + self.rng.uniform(-60, 60, 3)
            branch = Tube((tuple(start.tolist()), tuple(end.tolist())), (4.5, 1.5))
            self.canvas.paint([branch], ENHANCED["liver"] * self.contrast + 45, within=liver)
        self.organ("gallbladder", [gallbladder])
        hilum = self.ellipsoid((-64, -2, 30), (24, 30, 40))
        self.organ("spleen", [self.ellipsoid((-94, -30, 34), (38, 46, 56), 0.1)], [hilum])
        head = self.ellipsoid((36, 12, -28), (17, 16, 24))
        body = self.tube([(36, 12, -20), (8, 26, 2), (-30, 8, 12), (-72, -22, 26)], [14, 10, 10, 9])
        self.organ("pancreas", [head, *body])

    def _stomach(self) -> None:
        points = [(-48, -16, 66), (-58, 8, 48), (-52, 38, 14), (-14, 52, -16), (26, 38, -8)]
        whole = self.tube(points, [28, 31, 25, 17, 11])
        self.organ("stomach", whole)
        label = self.canvas.labels == ORGANS.index("stomach") + 1
        inner = [Tube(each.points, (each.radii[0] - 4, each.radii[1] - 4)) for each in whole]
        self.canvas.paint(whole, 78 * self.contrast, within=label)
        self.canvas.paint(inner, ENHANCED["stomach"] + self.rng.uniform(-15, 15), within=label)
        air = self.canvas.points[1] > max(each.points[0][1] for each in whole) + self.rng.uniform(-4, 8)
        self.canvas.paint([*inner[:3]], AIR + 60, within=label & air)

    def _kidneys(self) -> None:
        for side, name, height in ((1, "right", -32), (-1, "left", -18)):
            kidney = self.ellipsoid((side * 60, -46, height), (27, 27, 54), -0.15 * side)
            self.organ(f"{name} kidney", [kidney])
            x, y, z = kidney.center
            sinus = Ellipsoid((x - side * 18, y + 4, z), (17, 12, 24))
            self.canvas.paint([sinus], FAT + 70, within=self.canvas.labels == ORGANS.index(f"{name} kidney") + 1)
            self.tops.append((x - side * 25, y + 12, z + 50))

    def _vessels(self) -> None:
        aorta = self.tube([(-10, -38, -150), (-8, -33, 0), (-12, -36, 150)], [9, 11, 12], 2)
        cava = self.tube([(18, -34, -150), (20, -30, 10), (24, -14, 70), (16, 0, 96)], [11, 11, 13, 13], 2)
        portal = self.tube([(14, 6, -30), (12, 4, -2), (44, 8, 32)], [6, 7.5, 6])
        start = portal[0].points[1]
        portal += [Tube((start, (-34, -6, 16)), (6, 5)), Tube(((-34, -6, 16), (-70, -24, 32)), (5, 4))]
        gullet = self.tube([(-10, -20, 150), (-8, -18, 92), (-30, -14, 74)], [9, 9, 8], 2)
        self.organ("esophagus", gullet)
        for name, shapes in (("portal and splenic veins", portal), ("inferior vena cava", cava), ("aorta", aorta)):
            self.organ(name, shapes)

    def _adrenal_glands(self) -> None:
        """Two limbs each, above the kidneys and beside the great vessels."""
        for side, name, (x, y, z) in zip((1, -1), ("right", "left"), self.tops, strict=True):
            limbs = [(x - 3 * side, y + 11, z + 4), (x + 10, y - 13, z - 9), (x - 10, y - 13, z - 9)]
            self.organ(f"{name} adrenal gland", [Tube(((x, y, z), limb), (4.8, 3.4)) for limb in limbs])
