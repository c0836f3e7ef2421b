"""The few facts that several components share, and the one table of names that batches and model outputs use."""

from collections.abc import Mapping
from dataclasses import dataclass, field

# Names of tensors. A model's forward takes batch names and returns output names; a loss or an eval asks for either.
NAMES = {
    # batch
    "video": "[B, 3, T, H, W] float, normalised (uint8 until it is on the device)",
    "labels": "[B] int64 class numbers, or [B, C] float targets (several labels or label spaces, MixUp, smoothing)",
    "spaces": "[B, S] float, share of each label space in a sample: 1 in its own, less after MixUp",
    "index": "[B] int64, number of the sample in its data set",
    "view": "[B] int64, number of the test view (temporal view x crops + crop)",
    "splits": "[B, S] int64, what each of S splits of a data set does with a sample: 1 train, 2 test, 0 neither",
    "pixels": "[B, T, 3, H, W] uint8, the clip as it is loaded, of which masked models read a part",
    "regions": "[N] uint8, the parts of decoded frames that clips are made of, end to end (until on the device)",
    "cuts": "list of B `Cut`: how each clip, `video` or `pixels`, is made of its region",
    "visible": "[B, V] int64, tokens that the encoder sees, ascending; the grid is numbered by time, row, column",
    "masked": "[B, M] int64, tokens to be predicted, ascending; those that are visible too do not count in the loss",
    "text": "[B, K, L] int64 numbers of words or tokens; K candidate captions of each clip (or [B, L]: one)",
    "text_mask": "[B, L] bool, which of the tokens of `text` are there; the others fill it up",
    "video_features": "[B, L, F] float, stored features of a clip in order of time (one a second), then zeros",
    "video_mask": "[B, L] bool, which of these are there",
    "frame_labels": "[B, L] int64 class numbers of the seconds of a clip, -100 where there is none",
    "story": "[B] int64, number of the long video that a sample is a clip of",
    "windows": "list of B whole videos in windows (`data.feature_sets.Windows`), for evaluation",
    "group": "[B] int64, number of the clip that a sample's text is of: samples of one clip have the same",
    "pseudo": "[B] bool, whether a machine wrote a sample's text",
    "relevancy": "[B] float, how well a sample's text fits its clip: 1 fully, 0 not at all",
    "kind": "[B] int64, kind of the question that a sample is a choice of",
    "verbs": "[B, V] of zeros and ones, verbs of a sample's text",
    "nouns": "[B, N] of zeros and ones, nouns of a sample's text",
    # outputs
    "logits": "[B, C] float, before softmax or sigmoid; several label spaces stand side by side",
    "projected": "[B, P] float, logits of every head mapped to the classes of every other one",
    "projection_weights": "[N] float, all weights of those maps",
    "expanded": "[B, D] float, features after the expander",
    "features": "[B, D] float, pooled over tokens, before the head",
    "cls": "[B, D] float, the class token after the last block (of a model's `feature_map`)",
    "map": "[B, T, H, W, D] float, the other tokens in their places (of a model's `feature_map`)",
    "predicted": "[B, M, P] float, pixels of the masked tokens, in order of frame, row, column, colour, normalised",
    "video_embed": "[B, D] float, clips in the joint space of video and text",
    "text_embed": "[B, K, D] float, the K captions of each clip in that space",
    "video_tokens": "[B, V, D] float, hidden states of a clip: of [CLS], its frames, [SEP]",
    "video_token_mask": "[B, V], 1 where such a state counts: of the frames that are there, and [SEP]",
    "text_tokens": "[B, T, D] float, hidden states of a text",
    "text_token_mask": "[B, T], 1 where such a state counts: of all tokens that are there but the first",
    "token_logits": "[B, M, V] float, of the tokens 1 to M of each text; all after these are padding",
}


@dataclass(frozen=True)
class Clip:
    """A clip as the model sees it: frames, frames of the source between two of them, pixels, and its normalisation."""

    frames: int
    rate: int
    train_size: int
    test_size: int
    fps: float = 30.0
    mean: tuple[float, ...] = (0.45, 0.45, 0.45)
    std: tuple[float, ...] = (0.225, 0.225, 0.225)
    channels: int = 3


@dataclass(frozen=True)
class Augment:
    """Random transforms of training clips (nodes DATA and AUG; the meaning of each stands in defaults.yaml)."""

    scales: tuple[int, int] = (256, 320)
    area: tuple[float, ...] = ()
    aspect: tuple[float, ...] = ()
    inverse_uniform: bool = False
    flip: bool = True
    color_jitter: float = 0.0
    rand_augment: str = ""
    interpolation: str = "bicubic"
    erase_prob: float = 0.0
    erase_mode: str = "pixel"
    erase_count: int = 1
    clips: int = 1
    copies: int = 1
    crop_scales: tuple[float, ...] = ()
    on_device: bool = False


@dataclass(frozen=True)
class Masking:
    """Which tokens of a clip are hidden from the encoder (node MASK; the meaning of each stands in defaults.yaml)."""

    ratio: float = 0.0
    kind: str = "tube"
    rounding: str = "keep"
    decoder: str = "all"
    target: str = "tubelet"
    normalise: bool = True


@dataclass(frozen=True)
class Views:
    """Test views of a video: temporal clips x spatial crops."""

    clips: int = 1
    crops: int = 1


@dataclass(frozen=True)
class Reading:
    """How videos are opened: backend, limits that are checked before decoding, and where decoded frames are kept."""

    backend: str = "pyav"
    max_pixels: int = 36_000_000
    allow_outside_root: bool = False
    cache_folder: str = ""
    cache_gb: float = 0.0


@dataclass(frozen=True)
class Head:
    """How classifiers are made (MODEL.DROPOUT_RATE and node MULTI; the meaning of each stands in defaults.yaml)."""

    dropout: float = 0.0
    hidden: int = 0
    projection: bool = False
    expander: int = 0
    drop_logits: bool = False


HUB = "hub:"  # before a name on the Hugging Face hub


@dataclass(frozen=True)
class Text:
    """How texts become numbers, and how many of them (node TEXT; the meaning of each stands in defaults.yaml)."""

    tokenizer: str = "words"
    dictionary: str = ""
    length: int = 20
    keep_end: bool = True


@dataclass(frozen=True)
class Sampling:
    """How a language model writes (keys of the evaluation `captions`, where the meaning of each stands)."""

    max_length: int = 77
    returns: int = 1
    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 0
    beams: int = 1
    length_penalty: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Spec:
    """What components share.

    `labels` maps a label space (a data set's name) to its number of classes; `several` names those whose samples can
    have several labels; `space` is the label space of the data set at hand.
    """

    clip: Clip
    labels: Mapping[str, int] = field(default_factory=dict)
    several: frozenset[str] = frozenset()
    space: str = ""
    head: Head = field(default_factory=Head)
    augment: Augment = field(default_factory=Augment)
    views: Views = field(default_factory=Views)
    reading: Reading = field(default_factory=Reading)
    patch: tuple[int, int, int] = (2, 16, 16)
    masking: Masking = field(default_factory=Masking)
    text: Text = field(default_factory=Text)
    act_checkpoint: bool = False
    seed: int = 0
