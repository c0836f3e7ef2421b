"""How a decoded picture is turned and mirrored to be shown: the display matrix that phones write."""

import struct
from dataclasses import dataclass

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer


@dataclass(frozen=True)
class Orientation:
    """One of eight: rows and columns are `swapped`, then left and right `mirrored`, then top and bottom `flipped`."""

    swapped: bool = False
    mirrored: bool = False
    flipped: bool = False

    @property
    def is_mirror(self) -> bool:
        """Whether writing is shown as in a mirror, which no turn makes good."""
        return self.swapped ^ self.mirrored ^ self.flipped

    def show(self, picture: np.ndarray) -> np.ndarray:
        """[H, W, …] as decoded, to as it is shown, a view."""
        picture = picture.swapaxes(0, 1) if self.swapped else picture
        return picture[:: -1 if self.flipped else 1, :: -1 if self.mirrored else 1]

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of what is shown."""
        return (height, width) if self.swapped else (width, height)

    def filters(self) -> list[tuple[str, str]]:
        """The same as names and arguments of libavfilter's filters."""
        if self.swapped:
            ways = ("cclock_flip", "cclock"), ("clock", "clock_flip")
            return [("transpose", ways[self.mirrored][self.flipped])]
        return [("hflip", "")] * self.mirrored + [("vflip", "")] * self.flipped


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """That of a frame by its display matrix; of one between two quarters of a turn, the nearest.

    (x, y) of the picture is shown at (a x + c y, b x + d y), for the matrix a, b, u, c, d, v, … (ISO/IEC 14496-12).
    """
    try:
        # Not `frame.side_data`: it and the frame refer to each other, so that both wait for the garbage collector.
        matrix = SideDataContainer(frame).get("DISPLAYMATRIX")
    except ValueError:  # there is a kind of side data that this PyAV does not know
        return _QUARTERS[round(frame.rotation / 90) % 4]
    if matrix is None:
        return Orientation()
    a, b, _, c, d, *_ = struct.unpack_from("=9i", bytes(matrix))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


# By quarters of a turn against the clock
_QUARTERS = (Orientation(), Orientation(True, False, True), Orientation(False, True, True), Orientation(True, True))
