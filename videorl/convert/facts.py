"""What a checkpoint says of itself: settings that shapes of tensors do not show.

They stand in the `cfg` of our files and PySlowFast's, in the `args` of VideoMAE's, in `config.json` beside those of
transformers, and some are the same for all files of a layout. Here they are settings of this toolkit: dotted keys, and
keys of the model's own node without a dot (NUM_HEADS), for a pre-training model and its classifier have other nodes.
"""

from collections.abc import Mapping

from videorl import dialect
from videorl.convert import AS_IT_IS, Choice, layout_of, plain_names, weights_of
from videorl.registry import MODELS, UserError
from videorl.settings import Setting, parse_text

CLIP = (
    *("DATA.NUM_FRAMES", "DATA.SAMPLING_RATE", "DATA.TARGET_FPS", "DATA.TRAIN_CROP_SIZE", "DATA.TEST_CROP_SIZE"),
    *("DATA.MEAN", "DATA.STD", "MODEL.PATCH_SIZE", "TEXT.DICT", "TEXT.MAX_WORDS", "TEXT.TOKENIZER"),
)
# Keys of models that a pre-trained file and a fine-tuning have each their own of: they change no output of the weights.
FOR_TRAINING = {
    *("DROPOUT_RATE", "DROPOUT", "DROPPATH_RATE", "HEAD_INIT_SCALE", "LAYER_SCALE_INIT_VALUE", "ZERO_DECAY_POS_CLS"),
    *("FREEZE", "FREEZE_WORDS", "FREEZE_LANGUAGE", "TEXT_WEIGHTS", "LANGUAGE"),
}


def facts(state: Mapping, source: str, choice: Choice = AS_IT_IS) -> dict[str, object]:
    """Key to value, as the file has it: nothing is checked. Raises `UserError` for a file without weights."""
    _, found = weights_of(state, source, averaged=False, entry=choice.entry)
    weights = plain_names(found, choice.clear)
    layout = layout_of(weights)
    said = layout.says(state, weights) if hasattr(layout, "says") else {}
    return said | of_config(state.get("cfg"))


def clip_of(said: Mapping[str, object]) -> tuple[int, int, int] | None:
    """Frames, rows, columns of the file's clips, where it says them (typed values)."""
    frames, size = said.get("DATA.NUM_FRAMES"), said.get("DATA.TRAIN_CROP_SIZE")
    return (frames, size, size) if frames and size else None


def of_config(text: object) -> dict[str, object]:
    """The settings of a `cfg`, YAML of ours or PySlowFast's. Nothing where it is none."""
    if not isinstance(text, str):
        return {}
    try:
        settings = parse_text(text, "cfg")
        settings = dialect.translate([s for s in settings if _matters(s)], tell=False)
    except (UserError, ValueError, TypeError, OverflowError):  # YAML of anyone
        return {}
    last = {".".join(setting.path): setting.value for setting in settings}
    name = last.get("MODEL.MODEL_NAME")
    node = MODELS[name].node if isinstance(name, str) and name in MODELS else ""
    own = {setting.path[1]: setting.value for setting in settings if len(setting.path) == 2 and setting.path[0] == node}
    found = {key: last[key] for key in CLIP if last.get(key) not in (None, "")}
    parts = {key.bound for key in MODELS[name].keys.values() if "." not in key.bound} if node else set()
    found |= {key: value for key, value in last.items() if key.split(".")[0] in parts - {""}}
    return {k: value for k, value in (found | own).items() if k.rpartition(".")[2] not in FOR_TRAINING}


def _matters(setting: Setting) -> bool:
    nodes = {MODELS[name].node for name in MODELS} | {"DATA", "TEXT", "MASK"}
    return setting.path[0] in nodes or setting.path in (("MODEL", "MODEL_NAME"), ("MODEL", "PATCH_SIZE"))
