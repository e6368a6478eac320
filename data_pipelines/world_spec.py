"""What an embedded world consists of: `WorldSpec`, its names and its presets.

A world is a set of short generated videos with exact ground truth (world.py). Units are pixels and frames; x points
right and y down; direction label k is the angle k * 45 degrees, clockwise on the screen from "right".
"""

import math
from dataclasses import dataclass

DIRECTIONS = ("right", "down_right", "down", "down_left", "left", "up_left", "up", "up_right")
MOTIONS = ("translate", "bounce", "orbit", "collide", "occlude")
SHAPES = ("circle", "square", "triangle", "plus", "ring", "star")
PALETTES = ("random", "bright")
BACKGROUNDS = ("plain", "static", "moving")
EDGES = ("wrap", "leave", "inside")
EVENTS = ("bounce", "collision", "occlusion_start", "occlusion_end", "violation")
OCCLUDER_ID = 255  # value of the occluder in masks; objects are 1, 2, ...
# Every way to break physics, with the possible motion that it breaks.
VIOLATIONS = {
    "vanish": "occlude",  # goes behind the occluder, never comes out
    "appear": "occlude",  # comes out from behind the occluder, never went in
    "change": "occlude",  # comes out with another shape and colour
    "teleport": "translate",  # jumps to another place
    "reverse": "translate",  # turns round without a cause
    "pass_through": "collide",  # two objects run through each other
}


class WorldError(ValueError):
    """A world that cannot be made or read. The message is one line and says what to change."""


@dataclass(frozen=True)
class WorldSpec:
    """The distribution that the videos of a world are drawn from.

    A single frame does not tell the direction label in motions translate and orbit with edges "wrap" or "leave": the
    position in every frame is uniform and independent of the direction. In motion bounce this holds for the first
    frame. Motions collide and occlude, and edges "inside", place objects so that something happens: there, where an
    object is says something about where it goes.

    size: height and width in pixels (even), or one number for both
    num_frames, fps: length of a video, and the frame rate written to its file
    objects: fewest and most moving objects, drawn uniformly (motion collide: at least 2)
    shapes, motions, speeds: drawn uniformly and balanced over consecutive videos; speeds in pixels a frame
    radius: smallest and largest radius (of the circle around a shape), in pixels
    edges: of motions translate, orbit and occlude. wrap: the frame is a torus. leave: objects leave whole and come
      back on the other side. inside: the whole path lies in the frame. Motions bounce and collide always have walls
    common_motion: all objects start with the same velocity, so that those of motions translate, orbit and occlude
      never overlap; False: each has its own, and lower-numbered objects pass in front of others. In motions bounce
      and collide objects hit each other elastically and never overlap
    angle_jitter: largest deviation from the 8 directions, in degrees (below 22.5)
    palette: random, any background of middle brightness and any object that stands out from it; bright, bright objects
      of any colour on one dark background, so that videos differ in where things are and how they move more than in
      how they look
    background: plain colour, static texture, or texture that drifts in a random direction
    texture: standard deviation of the texture's luminance; noise: that of the noise behind the objects, fresh in every
      frame and pixel; both as a share of the full range
    occluder: True puts an occluder at a random place of every video, so that its presence says nothing
    violations: empty, or names from VIOLATIONS: then videos come in pairs, a possible one (even index) and its
      impossible twin (the next one), equal frame for frame up to the break. The motion is the one that is broken
    """

    size: int | tuple[int, int] = 64
    num_frames: int = 16
    fps: int = 8
    objects: tuple[int, int] = (1, 1)
    shapes: tuple[str, ...] = SHAPES
    motions: tuple[str, ...] = ("translate",)
    speeds: tuple[float, ...] = (2.0, 3.0, 4.0)
    radius: tuple[float, float] = (6.0, 9.0)
    edges: str = "wrap"
    common_motion: bool = True
    angle_jitter: float = 0.0
    palette: str = "random"
    background: str = "plain"
    texture: float = 0.12
    noise: float = 0.05
    occluder: bool = False
    violations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_numbers(self)
        _check_room(self)

    @property
    def height(self) -> int:
        return self.size if isinstance(self.size, int) else self.size[0]

    @property
    def width(self) -> int:
        return self.size if isinstance(self.size, int) else self.size[1]

    @property
    def videos_per_group(self) -> int:
        """2 where videos come in pairs of a possible one and its impossible twin, else 1."""
        return 2 if self.violations else 1


def demo_spec(size: int = 32, num_frames: int = 8, noise: float = 0.05) -> WorldSpec:
    """One bright object translating in one of 8 directions over noise: what `make train` pre-trains on.

    With random colours a small model spends its first thousand steps on them and learns nothing of motion (measured).
    """
    return WorldSpec(
        palette="bright",
        size=size,
        num_frames=num_frames,
        noise=noise,
        radius=_scaled(size, 3.5, 5.0),
        speeds=_scaled(size, 1.5, 2.0, 2.5, 3.0),
    )


def motions_spec(size: int = 64, num_frames: int = 16, noise: float = 0.05) -> WorldSpec:
    """All motions, always two objects and an occluder, so that neither gives the kind of motion away."""
    return WorldSpec(
        size=size,
        num_frames=num_frames,
        noise=noise,
        motions=MOTIONS,
        objects=(2, 2),
        occluder=True,
        radius=_scaled(size, 2.0, 2.75),
        speeds=_scaled(size, 1.25, 1.5, 1.75),
    )


def tracking_spec(size: int = 64, num_frames: int = 16, noise: float = 0.05) -> WorldSpec:
    """Two or three objects, each with its own motion, in front of a drifting texture and an occluder."""
    return WorldSpec(
        size=size,
        num_frames=num_frames,
        noise=noise,
        motions=("translate", "bounce", "orbit"),
        objects=(2, 3),
        edges="leave",
        common_motion=False,
        angle_jitter=20.0,
        background="moving",
        texture=0.08,
        occluder=True,
        radius=_scaled(size, 2.5, 4.0),
        speeds=_scaled(size, 0.75, 1.0, 1.5),
    )


def violation_spec(size: int = 64, num_frames: int = 16, noise: float = 0.02) -> WorldSpec:
    """Pairs of possible and impossible videos, every violation equally often."""
    return WorldSpec(
        size=size,
        num_frames=num_frames,
        noise=noise,
        motions=("translate", "collide", "occlude"),
        objects=(1, 2),
        edges="inside",
        background="static",
        texture=0.06,
        shapes=("circle", "square", "triangle", "plus"),
        radius=_scaled(size, 2.25, 3.0),
        speeds=_scaled(size, 1.1, 1.3, 1.5),
        violations=tuple(VIOLATIONS),
    )


PRESETS = {"demo": demo_spec, "motions": motions_spec, "tracking": tracking_spec, "violations": violation_spec}


def _scaled(size: int, *at_32: float) -> tuple[float, ...]:
    return tuple(value * size / 32 for value in at_32)


def _check_choices(s: WorldSpec) -> None:
    for name, values, known in (
        ("shapes", s.shapes, SHAPES),
        ("motions", s.motions, MOTIONS),
        ("palette", (s.palette,), PALETTES),
        ("background", (s.background,), BACKGROUNDS),
        ("edges", (s.edges,), EDGES),
        ("violations", s.violations, tuple(VIOLATIONS)),
    ):
        for value in values:
            if value not in known:
                raise WorldError(f"world: {name} {value!r} is not one of {', '.join(known)}")
    for name, values in (("shapes", s.shapes), ("motions", s.motions), ("speeds", s.speeds)):
        if not values or len(set(values)) != len(values):
            raise WorldError(f"world: {name}={values!r} must hold at least one value, and none twice")
    for violation in s.violations:
        if VIOLATIONS[violation] not in s.motions:
            raise WorldError(
                f"world: violation {violation!r} breaks motion {VIOLATIONS[violation]!r}: add it to motions"
            )
    if s.violations and s.edges != "inside":
        raise WorldError(
            f"world: violations need edges='inside', not {s.edges!r}: a wrapped path breaks physics itself"
        )
    if "change" in s.violations and len(s.shapes) < 2:
        raise WorldError("world: violation 'change' needs at least two shapes")


def _check_numbers(s: WorldSpec) -> None:
    for name, pixels in (("height", s.height), ("width", s.width)):
        if pixels < 16 or pixels % 2:
            raise WorldError(f"world: {name}={pixels} must be an even number of at least 16 (H.264 with 4:2:0 chroma)")
    if s.num_frames < 2 or s.fps < 1:
        raise WorldError(f"world: num_frames={s.num_frames} must be at least 2 and fps={s.fps} at least 1")
    low, high = s.objects
    if not 1 <= low <= high <= 8:
        raise WorldError(f"world: objects={s.objects} must be (fewest, most) between 1 and 8")
    if "collide" in s.motions and high < 2:
        raise WorldError(f"world: motion 'collide' needs two objects: objects={s.objects} -> (2, 2)")
    side = min(s.height, s.width)
    if not 1.5 <= s.radius[0] <= s.radius[1] <= 0.2 * side:
        raise WorldError(f"world: radius={s.radius} must be (smallest, largest) between 1.5 and {0.2 * side:g} pixels")
    if min(s.speeds) <= 0 or max(s.speeds) > side / 4:
        raise WorldError(f"world: speeds={s.speeds} must lie above 0 and not above {side / 4:g} pixels a frame")
    if not 0 <= s.angle_jitter < 22.5:
        raise WorldError(f"world: angle_jitter={s.angle_jitter} must be at least 0 and below 22.5 degrees")
    if not 0 <= s.noise <= 1 or not 0 <= s.texture <= 0.5:
        raise WorldError(f"world: noise={s.noise} must lie in [0, 1] and texture={s.texture} in [0, 0.5]")


def _check_room(s: WorldSpec) -> None:
    """Paths that must fit the frame and the time."""
    steps, largest, slowest, fastest = s.num_frames - 1, s.radius[1], min(s.speeds), max(s.speeds)
    side = min(s.height, s.width)
    if s.edges == "inside" and set(s.motions) & {"translate", "occlude"} and fastest * steps + 2 * largest > side:
        raise WorldError(
            f"world: edges='inside' needs (num_frames - 1) * speed + 2 * radius = {fastest * steps + 2 * largest:g} "
            f"pixels, the frame has {side}: lower speeds, radius or num_frames"
        )
    # From fully visible to fully hidden to half visible again, along a diagonal (world_physics.occluder_half).
    if "occlude" in s.motions and steps * slowest * math.sqrt(0.5) < 3 * largest + 2 * slowest:
        raise WorldError(
            f"world: motion 'occlude' at speed {slowest:g} and radius {largest:g} does not fit into {s.num_frames} "
            "frames: raise speeds or num_frames or lower the radius"
        )
