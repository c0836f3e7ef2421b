"""Files of VideoCLIP and Norton (facebookresearch/fairseq, examples/MMPT; XLearning-SCU/2024-ICLR-Norton).

Our names are theirs without `mmmodel.`, but for the head of a fine-tuning on COIN.
"""

from collections.abc import Mapping

from torch import Tensor, nn

NAME = "VideoCLIP"
FRONT = "mmmodel."
HEAD = "video_encoder.classifier."


def matches(names: set[str]) -> bool:
    return {"video_encoder.videomlp.linear1.weight", "text_encoder.embeddings.word_embeddings.weight"} <= {
        name.removeprefix(FRONT) for name in names
    }


def rename(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Without the numbers of positions, which the model makes itself."""
    plain = {name.removeprefix(FRONT): value for name, value in weights.items()}
    plain = {name: value for name, value in plain.items() if not name.endswith(".position_ids")}
    return {name.replace(HEAD, "head."): value for name, value in plain.items()}
