"""What the packets of an H.264 stream hold, read from the first bytes of their units: nothing is decoded.

ITU-T Recommendation H.264, 7.3.1 (units), 7.3.3 (headers of slices), 9.1 (Exp-Golomb codes).
"""


class Units:
    """The units of the packets of one stream. Of streams other than H.264 nothing is known.

    `codec`: the codec context of a stream of PyAV.
    """

    SLICE, IDR, HARMLESS = 1, 5, (6, 9, 12)  # types of units; the last: remarks, borders, filling
    B = 1  # type of slice

    def __init__(self, codec):
        extradata = codec.extradata or b""
        self.h264 = codec.name == "h264"
        # In files of other containers than mp4 and Matroska units have no length in front.
        self.prefix = (extradata[4] & 3) + 1 if self.h264 and extradata[:1] == b"\1" else 0

    def has_idr(self, packet) -> bool:
        """Whether it holds an IDR slice. Key frames of open GOPs and of periodic intra refresh have none: later frames
        may look back beyond them.
        """
        return any(unit[0] & 31 == self.IDR for unit in self._of(packet))

    def is_needed(self, packet) -> bool:
        """Whether other frames may be made from its own: all but whole B slices that are marked as no reference.

        The mark alone would not do: a damaged one makes a frame vanish without an error that thirty others need.
        """
        units = self._of(packet)
        slices = [unit for unit in units if unit[0] & 31 == self.SLICE]
        known = all(unit[0] & 31 in (self.SLICE, *self.HARMLESS) and not unit[0] & 0xE0 for unit in units)
        return not (slices and known and all(_slice_type(unit) == self.B for unit in slices))

    def _of(self, packet) -> list[bytes]:
        """Its units, if their lengths fill it exactly."""
        sample, at, units = bytes(packet) if self.prefix else b"", 0, []
        while at + self.prefix < len(sample):
            start = at + self.prefix
            at = start + int.from_bytes(sample[at:start], "big")
            units.append(sample[start:at])
        return units if at == len(sample) and all(units) else []


def _slice_type(unit: bytes) -> int:
    """The second number of a slice's header, as are all of them without the slices' number of kinds, 5; or -1."""
    bits = f"{int.from_bytes(unit[1:9], 'big'):0{8 * len(unit[1:9])}b}"
    number = -1
    for _ in range(2):  # Exp-Golomb codes: as many zeros as there are bits after the first one
        zeros = bits.find("1")
        if zeros < 0 or len(bits) < 2 * zeros + 1:
            return -1
        number, bits = int(bits[zeros : 2 * zeros + 1], 2) - 1, bits[2 * zeros + 1 :]
    return number % 5
