"""What a run takes out of checkpoint files: the weights, and what the files say of their own settings."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn
from yacs.config import CfgNode

from videorl import checkpoint, config, convert
from videorl.convert import facts
from videorl.convert.audit import Audit
from videorl.registry import MODELS, UserError
from videorl.settings import Setting

# What a checkpoint must hold to go on with its run, and of what type.
RUN = {
    **dict.fromkeys(("epoch", "step_in_epoch", "step_size", "world_size", "threads"), int),
    **dict.fromkeys(("model_state", "optimizer_state", "scaler_state", "objective_state"), dict),
    **dict.fromkeys(("data", "cfg"), str),
}
# What tensors do not show and few files say: where one does not, the log says that.
UNSEEN = ("DATA.NUM_FRAMES", "DATA.SAMPLING_RATE", "DATA.TARGET_FPS", "DATA.MEAN", "DATA.STD")
WORDS = "TEXT.DICT"


def missing(state: Mapping) -> list[str]:
    """What the content of a file lacks to go on with its run. Nothing: it is a checkpoint of a run of this toolkit."""
    return [name for name, kind in RUN.items() if not isinstance(state.get(name), kind)]


# ------------------------------------------------------------------------------------------------------------ settings


def first_file(tree: CfgNode) -> tuple[Path | None, bool]:
    """The checkpoint whose weights come first, and whether it is named, not found."""
    folder = Path(tree.OUTPUT_DIR) / "checkpoints"
    found, named = checkpoint.committed(folder), tree.TRAIN.CHECKPOINT_FILE_PATH
    if tree.TRAIN.ENABLE and not tree.TRAIN.AUTO_RESUME:
        found = []
    elif not tree.TRAIN.ENABLE and tree.TEST.CHECKPOINT_FILE_PATH:
        found, named = [], tree.TEST.CHECKPOINT_FILE_PATH
    elif not tree.TRAIN.ENABLE and (folder / checkpoint.BEST).is_file():
        found = [folder / checkpoint.BEST]
    return (found[0], False) if found else (Path(named) if named else None, True)


def settings_in(file: Path, named: bool, tree: CfgNode, said: list[str]) -> list[Setting]:
    try:
        state = checkpoint.read(file, mapped=True)
        found, wrong = _typed(state, file, tree, choice(tree) if named else convert.AS_IT_IS)
    except UserError:
        if named:
            raise
        return []  # the run says what is wrong with it, and takes another
    said += wrong
    train, lacks = tree.TRAIN, missing(state)
    to_resume = train.ENABLE and named and not train.CHECKPOINT_EPOCH_RESET and file == Path(train.CHECKPOINT_FILE_PATH)
    if lacks and to_resume:
        said.append(
            f"{file} holds no run of this toolkit ({', '.join(lacks)} missing): its weights are taken, as with"
            " TRAIN.CHECKPOINT_EPOCH_RESET True"
        )
    return [setting for setting in found if ".".join(setting.path) != WORDS or Path(setting.value).is_file()]


def _typed(state: Mapping, file: Path, cfg: CfgNode, given: convert.Choice) -> tuple[list[Setting], list[str]]:
    """The settings that a file says of itself, for the run's model, and lines on those that are none."""
    entry = MODELS[cfg.MODEL.MODEL_NAME]
    own = {key.name for key in entry.keys.values() if entry.node and not key.bound}
    said = facts.facts(state, str(file), given)
    dotted = {key if "." in key else f"{entry.node}.{key}": v for key, v in said.items() if "." in key or key in own}
    found, wrong = config.valid(dotted, str(file))
    return found, [f"{line} (not used)" for line in wrong]


def choice(cfg: CfgNode) -> convert.Choice:
    """What the config says of the file that it names. Raises `UserError`."""
    clip = cfg.MODEL.CHECKPOINT_CLIP
    if any(size != int(size) for size in clip):
        raise UserError(f"MODEL.CHECKPOINT_CLIP {clip}: expected frames, rows and columns, whole numbers")
    grid = tuple(map(int, clip)) if clip else None
    return convert.Choice(cfg.MODEL.CHECKPOINT_ENTRY, tuple(cfg.TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN), grid)


# ------------------------------------------------------------------------------------------------------------- weights


def take(
    cfg: CfgNode, model: nn.Module, state: dict, file: Path, *,
    data: convert.ClassNames | None = None, testing: bool = False, named: bool = True,
) -> None:  # fmt: skip
    """Puts the weights of a checkpoint into `model`, and says where its settings are others.

    `named`: by the user, so that MODEL.CHECKPOINT_ENTRY and its like are meant for it. Raises `UserError` where the
    file gives too little.
    """
    found, audit = fitted(cfg, model, state, file, data=data, testing=testing, named=named)
    convert.put(model, found, audit, testing=testing, partial=cfg.MODEL.ALLOW_PARTIAL)


def fitted(
    cfg: CfgNode, model: nn.Module, state: dict, file: Path, *,
    data: convert.ClassNames | None = None, testing: bool = False, named: bool = True,
) -> tuple[dict[str, Tensor], Audit]:  # fmt: skip
    """The weights of a checkpoint that fit `model`, and the audit, as `convert.fit` gives them."""
    given = choice(cfg) if named else convert.AS_IT_IS
    found, wrong = _typed(state, file, cfg, given)
    theirs = {".".join(setting.path): setting.value for setting in found}
    terms = replace(given, clip=given.clip or facts.clip_of(theirs))
    weights, audit = convert.fit(model, state, str(file), data=data, testing=testing, choice=terms)
    return weights, replace(audit, differs=_differs(state, theirs, cfg), said=audit.said + wrong + _unsaid(theirs, cfg))


def _differs(state: Mapping, theirs: Mapping[str, object], cfg: CfgNode) -> list[str]:
    ours = config.flat(cfg)
    others = [key for key, value in theirs.items() if value != ours[key] and key != WORDS]
    lines = [f"{key}: the file has {theirs[key]}, this run {ours[key]}" for key in others]
    return lines + _other_words(state, theirs.get(WORDS, ""), cfg.TEXT.DICT)


def _unsaid(theirs: Mapping[str, object], cfg: CfgNode) -> list[str]:
    unsaid = [key for key in (*UNSEEN, *_heads(cfg)) if key not in theirs]
    return [f"the file does not say {', '.join(unsaid)}: taken as this run has them"] * bool(unsaid)


def _heads(cfg: CfgNode) -> list[str]:
    entry = MODELS[cfg.MODEL.MODEL_NAME]
    return [f"{entry.node}.NUM_HEADS"] * ("NUM_HEADS" in entry.keys)


def words_of(dictionary: str) -> str:
    """SHA-256 of the file of words, for checkpoints to carry: word numbers are places in it. Nothing without a file."""
    file = Path(dictionary)
    return hashlib.sha256(file.read_bytes()).hexdigest() if dictionary and file.is_file() else ""


def _other_words(state: Mapping, theirs: str, ours: str) -> list[str]:
    trained, here = state.get("words"), words_of(ours)
    other = trained != here if trained and here else theirs and ours and Path(theirs).name != Path(ours).name
    return [f"{WORDS}: the file's words are numbered by another one ({theirs or 'unnamed'}) than {ours}"] * bool(other)
