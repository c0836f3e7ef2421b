"""The sizes of VideoMAE (MCG-NJU/VideoMAE, OpenGVLab/VideoMAEv2, deepglint/V-SWIFT) by their letters.

A key of our own: `VIDEOMAE.SIZE L` and `VIT.SIZE L` stand for what the published models of that name are made of.
"""

from typing import Literal

from videorl.dialect.rules import Combined, Last, Made, Rule, given
from videorl.registry import Key

Size = Literal["S", "B", "L", "H", "g"]

# Keys of the encoder, in VIDEOMAE and VIT, and of the decoder, in VIDEOMAE alone. DECODER_DEPTH differs by recipe.
ENCODER = ("EMBED_DIM", "DEPTH", "NUM_HEADS", "MLP_RATIO")
DECODER = ("DECODER_DIM", "DECODER_HEADS")
SIZES = {
    "S": (384, 12, 6, 4.0, 192, 3),
    "B": (768, 12, 12, 4.0, 384, 6),
    "L": (1024, 24, 16, 4.0, 512, 8),
    "H": (1280, 32, 16, 4.0, 512, 8),
    "g": (1408, 40, 16, 48 / 11, 512, 8),
}
PATCH_OF_G = [2, 14, 14]  # of the others: as MODEL.PATCH_SIZE says, by default 2, 16, 16

NODES = {"VIDEOMAE": (*ENCODER, *DECODER), "VIT": ENCODER}
RULES: dict[str, Rule] = {f"{node}.SIZE": Combined(", ".join(keys)) for node, keys in NODES.items()}
KEYS = {
    (node, "SIZE"): Key("SIZE", Size, "", f"published size, short for {', '.join(keys)}; g: MODEL.PATCH_SIZE, too")
    for node, keys in NODES.items()
}


def made(last: Last) -> list[Made]:
    """Settings that a size is short for. They stand where it does: later ones, also of single keys, replace them."""
    found = []
    for node, keys in NODES.items():
        name = f"{node}.SIZE"
        if size := given(last, name, "", Size):
            found += [Made(f"{node}.{key}", value, (name,)) for key, value in zip(keys, SIZES[size], strict=False)]
        if size == "g":
            found.append(Made("MODEL.PATCH_SIZE", PATCH_OF_G, (name,)))
    return found
