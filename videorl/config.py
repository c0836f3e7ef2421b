"""The config tree: defaults + YAML files (with `_BASE_`) + overrides, typed, checked, frozen.

The tree is a yacs `CfgNode` with PySlowFast's node and key names. Global keys stand in `defaults.yaml`; those of
components come from their signatures (see `registry.py`). Nothing changes the tree after `load`.
"""

import functools
import itertools
import logging
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import yaml
from yacs.config import CfgNode

from videorl import dialect, registry
from videorl.registry import (
    BATCHES,
    DATASETS,
    EVALS,
    LOSSES,
    MODELS,
    REQUIRED,
    Entry,
    Key,
    Range,
    Registry,
    UserError,
    did_you_mean,
)
from videorl.settings import Setting, convert, parse, parse_text, read_file, read_overrides, shown, type_name
from videorl.spec import Augment, Clip, Head, Masking, Reading, Spec, Text, Views

log = logging.getLogger("videorl")

DEFAULTS = Path(__file__).with_name("defaults.yaml")
BEST_METRICS = frozenset(dialect.BEST_METRICS.values())  # values of TRAIN.BEST_METRIC that nobody need have asked for
ALL = "all"  # as a data set: every entry of DATASETS


def _own(name: str, kind: object, default: object, doc: str, limits: str = "") -> Key:
    return Key(name, kind, default, doc, range=Range(limits) if limits else None)


# Maps of named components: node -> (registry, keys that every entry has beside those of the component).
MAPS: dict[str, tuple[Registry, dict[str, Key]]] = {
    kind: (what, {key.name: key for key in keys})
    for kind, what, keys in (
        (
            "DATASETS",
            DATASETS,
            (
                _own("NUM_CLASSES", int, REQUIRED, "classes of this data set's label space", ">= 1"),
                _own("REPLICAS", int, 1, "times an epoch of all data sets goes through this one", ">= 1"),
                _own("TEST_CLIPS", int, 0, "clips along time of a test video; 0: TEST.NUM_ENSEMBLE_VIEWS", ">= 0"),
                _own("TEST_CROPS", int, 0, "crops of each test clip; 0: TEST.NUM_SPATIAL_CROPS", ">= 0, <= 3"),
            ),
        ),
        ("LOSSES", LOSSES, (_own("WEIGHT", float, 1.0, "factor of this loss in the sum", ">= 0"),)),
        (
            "EVALS",
            EVALS,
            (
                _own("DATASET", str, REQUIRED, "registered data set, an entry of DATASETS, or all of those"),
                _own("SPLIT", typing.Literal["train", "val", "test"], "val", "part of the data set"),
                _own("EVERY", int, 0, "epochs between two runs while training; 0: none", ">= 0"),
                _own("AT_TEST", bool, True, "run when TEST.ENABLE is on"),
                _own(
                    "CLIPS", int, 1, "clips along time of each video; 0: TEST_CLIPS of the data set, or TEST's", ">= 0"
                ),
                _own(
                    "CROPS",
                    int,
                    1,
                    "crops of a clip: 1, 3, of hmdb51 2 (mirrored); 0: TEST_CROPS or TEST's",
                    ">= 0, <= 3",
                ),
                _own("BATCH_SIZE", int, 0, "clips in one forward pass; 0: TEST.BATCH_SIZE", ">= 0"),
            ),
        ),
    )
}


# --------------------------------------------------------------------------------------------------------- loading


def load(
    files: Iterable[str | Path] = (),
    overrides: Iterable[str] = (),
    known: Callable[[CfgNode], list[Setting]] = lambda tree: [],
    texts: Mapping[str, str] = MappingProxyType({}),
    **top,
) -> CfgNode:
    """Defaults, `texts`, then `files` in order, `overrides` (KEY VALUE KEY VALUE …), and `top` keys (NUM_SHARDS=2).

    `texts`: YAML by what errors call it, such as the config that a checkpoint holds. `known` gives settings that come
    before all of these, from the tree of global and model keys without them.
    Returns a frozen tree in which all sugar is expanded. Raises `UserError` for an unknown key, name or type.
    """
    settings = [setting for name, text in texts.items() for setting in parse_text(text, name)]
    for file in files:
        settings += read_file(Path(file))
    settings += read_overrides(list(overrides))
    settings += [Setting((key,), value, "command line") for key, value in top.items() if value is not None]
    _check_early(settings)
    registry.discover()
    settings = dialect.translate(settings)
    without_maps = build_tree(s for s in settings if s.path[0] not in MAPS)
    _check_names(without_maps, settings)
    if first := known(without_maps):
        settings = first + settings
        without_maps = build_tree(s for s in settings if s.path[0] not in MAPS)
    sugar = dialect.sugar(without_maps, given={".".join(s.path) for s in settings if len(s.path) > 1})
    cfg = build_tree([Setting(path, value, "default") for path, value in sugar] + settings)
    _check_entries(cfg)
    _check_log_dir(cfg.TENSORBOARD.LOG_DIR)
    _check_names(cfg, settings)
    _tell_unread(cfg, settings)
    cfg.freeze()
    return cfg


def _check_early(settings: list[Setting]) -> None:
    """Raises `UserError` for what is wrong whatever the keys of components are: importing them takes seconds."""
    dialect.check_model({".".join(s.path): s for s in settings}, {*MODELS, *registry.declared()[0][MODELS.kind]})
    schema, published = global_schema(), {*dialect.RULES, *map(".".join, dialect.SHORT_KEYS)}
    registered = {what[name].node for what in (DATASETS, MODELS, LOSSES, EVALS) for name in what}
    own = registered | registry.declared()[1] | {*MAPS, "BATCHES"}
    heads = own | {path[0] for path in schema} | {name.split(".")[0] for name in published}
    for setting in settings:
        head = setting.path[0]
        if head in MAPS and len(setting.path) > 1:
            _check_entry_name(head, setting.path[1], setting.where)
        known_later = head in own or (head in heads and ".".join(setting.path) in published)
        if setting.value != {} and not known_later:
            _checked(setting, schema)
    for setting in {s.path: s for s in settings}.values():
        if what := _names_a(setting.path):
            _check_name_early(setting, what, settings)


def _check_name_early(setting: Setting, what: Registry, settings: list[Setting]) -> None:
    name, rule = setting.value, dialect.RULES.get(".".join(setting.path))
    name = str(rule.of(name) if rule else name)
    if what is MODELS and name in dialect.MODEL_NAMES:
        return
    if what is DATASETS and any(s.path[0] == "DATASETS" or s.path[-1].startswith("MULTI_") for s in settings):
        return  # it may be an entry of those
    if name != ALL:
        try:
            what.check(name, {*what, *registry.declared()[0][what.kind]})
        except UserError as error:
            raise UserError(f"{setting.where}: {'.'.join(setting.path)}: {error}") from None


def _names_a(path: tuple[str, ...]) -> Registry | None:
    """What kind of component a key names."""
    if path[0] in MAPS and path[2:] == ("NAME",):
        return MAPS[path[0]][0]
    return {
        ("MODEL", "MODEL_NAME"): MODELS,
        ("MODEL", "LOSS_FUNC"): LOSSES,
        ("BATCHES", "NAME"): BATCHES,
        ("TRAIN", "DATASET"): DATASETS,
        ("TEST", "DATASET"): DATASETS,
    }.get(path)


def build_tree(settings: Iterable[Setting]) -> CfgNode:
    """The default tree with each setting checked, converted and put in its place."""
    schema = global_schema() | component_schema()
    cfg = CfgNode()
    for path, key in schema.items():
        _put(cfg, path, key.default)
    entries = {("BATCHES",): [Setting(("BATCHES", "NAME"), cfg.BATCHES.NAME, str(DEFAULTS))]}
    for setting in settings:
        head = setting.path[0]
        if head == "BATCHES" or (head in MAPS and len(setting.path) > 1):
            entries.setdefault(setting.path[: 1 + (head in MAPS)], []).append(setting)
        elif head in MAPS and setting.value != {}:
            raise _not_a_value(setting)
        elif head not in MAPS and not (setting.value == {} and _is_node(setting.path, schema)):
            _put(cfg, setting.path, _checked(setting, schema))
    for path, given in entries.items():
        _put(cfg, path, _entry_node(path, given))
    return cfg


def valid(found: Mapping[str, object], source: str) -> tuple[list[Setting], list[str]]:
    """Those of `found` (dotted key to value) that are settings of the right type, and what is wrong with others."""
    schema = global_schema() | component_schema()
    good, wrong = [], []
    for name, value in found.items():
        setting = Setting(tuple(name.split(".")), value, source)
        if setting.path not in schema:
            continue
        try:
            good.append(setting._replace(value=_plain(_checked(setting, schema))))
        except UserError as error:
            wrong.append(str(error))
    return good, wrong


def _checked(setting: Setting, schema: Mapping[tuple[str, ...], Key]) -> object:
    key, name = schema.get(setting.path), ".".join(setting.path)
    if key is not None:
        value = convert(setting.value, key.type, name, setting.where)
        if key.range and not key.range.holds(value):
            raise UserError(f"{setting.where}: {name} {shown(value)}: expected {key.range.text}")
        return value
    if _is_node(setting.path, schema):
        raise _not_a_value(setting)
    known = [".".join(path[:depth]) for path in schema for depth in range(1, len(path) + 1)] + list(dialect.RULES)
    hint = did_you_mean(name, known) or did_you_mean(setting.path[-1], {path[-1] for path in schema})
    raise UserError(f"{setting.where}: unknown key {name}{hint}")


def _is_node(path: tuple[str, ...], schema) -> bool:
    return any(key[: len(path)] == path and len(key) > len(path) for key in schema)


def _not_a_value(setting: Setting) -> UserError:
    name = ".".join(setting.path)
    return UserError(f"{setting.where}: {name} is a node and takes keys, not the value {shown(setting.value)}")


def _entry_node(path: tuple[str, ...], given: list[Setting]) -> CfgNode:
    """A node whose NAME picks a registered component: that component's keys, and those common to the map.

    Where a later file changes NAME, what stood there before is left behind.
    """
    what, common = MAPS.get(path[0], (BATCHES, {}))
    name, where, kept = "", "default", []
    for setting in given:
        if setting.path == (*path, "NAME"):
            if setting.value != name:
                kept = [s for s in kept if s.source == setting.source]
            name, where = str(setting.value), setting.where
        elif setting.path != path:
            kept.append(setting)
        elif setting.value != {}:
            raise _not_a_value(setting)
    if not name:
        raise UserError(f"{given[0].where}: {'.'.join(path)} needs NAME: a registered {what.kind} ({', '.join(what)})")
    try:
        entry = what[name]
    except UserError as error:
        raise UserError(f"{where}: {'.'.join(path)}.NAME: {error}") from None
    schema = {(*path, key.name): _with_range(key) for key in [*common.values(), *entry.keys.values()]}
    node = CfgNode({"NAME": name})
    for key in [*common.values(), *(k for k in entry.keys.values() if not k.bound and not entry.node)]:
        node[key.name] = _copy(key.default)
    for setting in kept:
        node[setting.path[-1]] = _checked(setting, schema)
    return node


def _with_range(key: Key) -> Key:
    """A key that is bound to a global one, with what that one may be."""
    if not key.bound:
        return key
    bound = global_schema()[tuple(key.bound.split("."))]
    return replace(key, type=bound.type, range=bound.range)


# Of each map, the name that its entries cannot have, and what has it.
TAKEN = {"DATASETS": (ALL, "what EVALS calls all data sets"), "LOSSES": ("loss", "the sum of all losses in the log")}


def _check_entries(cfg: CfgNode) -> None:
    """Every key of every component in use has a value, and a name that can be that of a file in OUTPUT_DIR."""
    for kind in MAPS:
        for name, node in cfg[kind].items():
            _check_entry_name(kind, name)
            missing = [key for key, value in node.items() if value is REQUIRED]
            if missing:
                raise UserError(f"{kind}.{name}: {', '.join(missing)} must be given")


def _check_entry_name(kind: str, name: str, where: str = "") -> None:
    taken, place = TAKEN.get(kind, ("", "")), f"{where}: " * bool(where)
    if taken[0] and name == taken[0]:
        raise UserError(f"{place}{kind}.{name}: {taken[1]} has that name; give the entry another")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name):
        raise UserError(f"{place}{kind}.{name[:100]}: expected a name of at most 100 letters, digits, '_' and '-'")


def _check_log_dir(folder: str) -> None:
    if Path(folder).is_absolute() or ".." in Path(folder).parts:
        raise UserError(f"TENSORBOARD.LOG_DIR {shown(folder)}: expected a folder below OUTPUT_DIR, such as tensorboard")


def _check_names(cfg: CfgNode, settings: list[Setting]) -> None:
    """Every key that names a component names a registered one or, for data sets, an entry of DATASETS."""
    where = {setting.path: setting.where for setting in settings}
    own = {path[1] for path in where if path[0] == "DATASETS" and len(path) > 1}
    wanted = [(("MODEL", "MODEL_NAME"), MODELS), (("MODEL", "LOSS_FUNC"), LOSSES)]
    wanted += [((node, "DATASET"), DATASETS) for node in ("TRAIN", "TEST")]
    wanted += [(("EVALS", name, "DATASET"), DATASETS) for name in cfg.EVALS]
    for path, what in wanted:
        name = _get(cfg, path)
        try:
            if what is DATASETS and name == ALL and not own:
                raise UserError("all means every entry of DATASETS, which is empty; name data sets there")
            if what is not DATASETS or name not in {*own, ALL}:
                what[name]
        except UserError as error:
            near = did_you_mean(name, own) if what is DATASETS else ""
            raise UserError(f"{where.get(path, 'default')}: {'.'.join(path)}: {error}{near}") from None
    trained, heads = cfg.TRAIN.DATASET, {*cfg.DATASETS, ALL}
    if cfg.TRAIN.ENABLE and cfg.DATASETS and trained not in heads and "NUM_CLASSES" in DATASETS[trained].keys:
        raise UserError(
            f"{where.get(('TRAIN', 'DATASET'), 'default')}: TRAIN.DATASET {trained} has no head: heads are those of"
            f" DATASETS ({', '.join(cfg.DATASETS)}); set it to one of these or to `{ALL}`"
        )


# Keys that are short for others, which a config may give in full, as do those that a run leaves behind.
SHORT_FOR = {
    ("TRAIN", "EVAL_PERIOD"): ("EVALS", "val", "EVERY"),
    ("TRAIN", "DATASET"): ("EVALS", "val", "DATASET"),
    ("TEST", "DATASET"): ("EVALS", "test", "DATASET"),
}


# Nodes that are switched off as a whole by one of their keys.
SWITCHES = {"AUG": "ENABLE", "MIXUP": "ENABLE", "EMA": "ENABLED", "TENSORBOARD": "ENABLE"}


def _tell_unread(cfg: CfgNode, settings: list[Setting]) -> None:
    """Words typed in vain are worth a line."""
    typed = {s.path: s for s in settings if s.source == "command line"}
    for path, (_, entry, key) in SHORT_FOR.items():
        value, node = _get(cfg, path), cfg.EVALS.get(entry)
        if path in typed and node is not None and node[key] != value:
            log.warning(
                "%s: %s %s does not change EVALS.%s.%s, which is given in full: %s; set that, too",
                typed[path].where, ".".join(path), value, entry, key, node[key],
            )  # fmt: skip
    _tell_switched_off(cfg, {s.path: s for s in settings})
    value, norm = cfg.SOLVER.CLIP_GRAD_VAL, cfg.SOLVER.CLIP_GRAD_L2NORM
    if value and norm:
        log.warning("SOLVER.CLIP_GRAD_L2NORM %g is not read: CLIP_GRAD_VAL %g goes first; set one to 0", norm, value)
    name, loss = cfg.MODEL.LOSS_FUNC, typed.get(("MODEL", "LOSS_FUNC"))
    if loss and name not in [node.NAME for node in cfg.LOSSES.values()]:
        named = ", ".join(cfg.LOSSES)
        log.warning("%s: MODEL.LOSS_FUNC %s is not read: LOSSES names the losses: %s", loss.where, name, named)


def _tell_switched_off(cfg: CfgNode, given: Mapping[tuple[str, ...], Setting]) -> None:
    """Keys that nothing reads while their node is off. Where a file says that it is, only those typed in vain."""
    for node, switch in SWITCHES.items():
        if cfg[node][switch]:
            continue
        known = (node, switch) in given
        idle = [
            setting
            for path, setting in given.items()
            if path[:1] == (node,) and path != (node, switch) and len(path) == 2
            if not known or setting.source == "command line"
        ]
        if idle:
            names = ", ".join(".".join(s.path) for s in idle)
            smooth = "; to smooth labels without MixUp: LABEL_SMOOTHING of the loss" * ("LABEL_SMOOTH" in names)
            log.warning("%s: %s: not read, for %s.%s is off%s", idle[0].where, names, node, switch, smooth)
    if cfg.MIXUP.ENABLE and cfg.MIXUP.LABEL_SMOOTH_VALUE:
        for name in (n for n, node in cfg.LOSSES.items() if node.get("LABEL_SMOOTHING")):
            log.warning("labels are smoothed twice: by LOSSES.%s.LABEL_SMOOTHING and MIXUP.LABEL_SMOOTH_VALUE", name)


# ----------------------------------------------------------------------------------------------------------- schema


@functools.cache
def global_schema() -> Mapping[tuple[str, ...], Key]:
    """Path to key of everything in `defaults.yaml`.

    The comment beside a key, and its lines below, are its meaning. It may begin with what the key may be, in brackets:
    a range of numbers (see `Range`), or words: `(sgd | adam)`.
    """
    lines = DEFAULTS.read_text(encoding="utf-8").splitlines()
    schema = {}
    for setting in parse(DEFAULTS):
        default = CfgNode() if setting.value == {} else setting.value
        limits, doc = re.fullmatch(r"(?:\(([^)]*)\) )?(.*)", _comment(lines[setting.line - 1 :])).groups()
        kind, limits = _limited(_type_of(default), limits)
        schema[setting.path] = Key(setting.path[-1], kind, default, doc, range=limits)
    return schema


def _type_of(default):
    if isinstance(default, list):
        return list[type(default[0])] if default else list[float]
    return type(default)


def _limited(kind: type, limits: str | None) -> tuple[object, Range | None]:
    """Type and range of a global key: `1 | 3` -> one of these, `>= 1` -> a number of that range."""
    if limits and " | " in limits:
        return typing.Literal[tuple(kind(word.strip('"')) for word in limits.split(" | "))], None
    return kind, Range(limits) if limits else None


def _comment(lines: list[str]) -> str:
    """The comment beside a key, which stands on the first line, and on the lines below that hold nothing else."""
    below = itertools.takewhile(lambda line: line.lstrip().startswith("# "), lines[1:])
    parts = [lines[0].partition(" # ")[2], *(line.partition("# ")[2] for line in below)]
    return " ".join(part.strip() for part in parts)


def component_schema() -> dict[tuple[str, ...], Key]:
    """Path to key of the nodes that registered components bring with them."""
    schema = {}
    for what in (DATASETS, MODELS, LOSSES, EVALS):
        for name in what:
            entry = what[name]
            if entry.node:
                schema |= {(entry.node, key.name): key for key in entry.keys.values() if not key.bound}
    return schema


def describe(name: str, files: Iterable[str | Path] = ()) -> str:
    """Every key of a node, or one key: type, default, unit and meaning; also of the projects of `files`."""
    registry.discover()
    for file in files:
        read_file(Path(file))
    schema = global_schema() | component_schema() | dialect.SHORT_KEYS
    schema |= {(kind, "<name>", key): k for kind, (_, common) in MAPS.items() for key, k in common.items()}
    for what, node in ((LOSSES, "LOSSES"), (EVALS, "EVALS"), (DATASETS, "DATASETS"), (BATCHES, "BATCHES")):
        for entry in (what[n] for n in what):
            if not entry.node:
                path = (node, f"<{entry.name}>") if node != "BATCHES" else (node,)
                schema |= {(*path, key.name): key for key in entry.keys.values() if not key.bound}
    wanted = tuple(name.upper().split(".")) if name else ()
    found = {path: key for path, key in schema.items() if tuple(p.upper() for p in path[: len(wanted)]) == wanted}
    if not found:
        raise UserError(
            f"unknown node or key {name}{did_you_mean(name, {'.'.join(p) for p in schema} | {p[0] for p in schema})}"
        )
    return "\n".join(_describe_key(path, key) for path, key in found.items())


def _describe_key(path, key: Key) -> str:
    default = (
        "required"
        if key.default is REQUIRED
        else yaml.safe_dump(_plain(key.default), default_flow_style=True).split("\n")[0]
    )
    kind = f"{type_name(key.type)} {key.range.text}" if key.range else type_name(key.type)
    return f"{'.'.join(path)}  ({kind}, default {default})\n    {key.doc}"


# ------------------------------------------------------------------------------------------- what components receive


def component(cfg: CfgNode, what: Registry, name: str) -> tuple[Entry, dict[str, object]]:
    """The registered component `name` and the value of each of its keys.

    `name` is an entry of the map node of that kind (DATASETS.kinetics) where there is one, else a registered name.
    """
    kind = next((k for k, (r, _) in MAPS.items() if r is what), "BATCHES" if what is BATCHES else "")
    node = cfg.BATCHES if what is BATCHES else cfg[kind].get(name) if kind else None
    entry = what[node.NAME if node else name]
    values = {}
    for key in entry.keys.values():
        if node and key.name in node:
            values[key.name] = node[key.name]
        elif key.bound:
            values[key.name] = _get(cfg, key.bound.split("."))
        else:
            values[key.name] = _get(cfg, (entry.node, key.name))
    missing = [key for key, value in values.items() if value is REQUIRED]
    if missing:
        raise UserError(f"{what.kind} {name!r}: {', '.join(f'{entry.node}.{k}' for k in missing)} must be given")
    return entry, {key: _plain(value) for key, value in values.items()}


def spec(cfg: CfgNode, views: Views | None = None, space: str = "") -> Spec:
    """The facts that components share, read from the tree. `views` and `space`: those of the data set at hand."""
    data, aug = cfg.DATA, cfg.AUG
    clip = Clip(
        frames=data.NUM_FRAMES,
        rate=data.SAMPLING_RATE,
        train_size=data.TRAIN_CROP_SIZE,
        test_size=data.TEST_CROP_SIZE,
        fps=data.TARGET_FPS,
        mean=tuple(data.MEAN),
        std=tuple(data.STD),
        channels=data.INPUT_CHANNEL_NUM[0],
    )
    augment = Augment(
        scales=tuple(data.TRAIN_JITTER_SCALES),
        area=tuple(data.TRAIN_JITTER_SCALES_RELATIVE),
        aspect=tuple(data.TRAIN_JITTER_ASPECT_RELATIVE),
        flip=data.RANDOM_FLIP,
        inverse_uniform=data.INV_UNIFORM_SAMPLE,
        color_jitter=aug.COLOR_JITTER if aug.ENABLE else 0.0,
        rand_augment=aug.AA_TYPE if aug.ENABLE else "",
        interpolation=aug.INTERPOLATION,
        erase_prob=aug.RE_PROB if aug.ENABLE else 0.0,
        erase_mode=aug.RE_MODE,
        erase_count=aug.RE_COUNT,
        clips=data.TRAIN_CROP_NUM_TEMPORAL,
        copies=data.TRAIN_CROP_NUM_TEMPORAL * (aug.NUM_SAMPLE if aug.ENABLE else 1),
        crop_scales=tuple(data.TRAIN_CROP_SCALES),
    )
    mask = cfg.MASK
    reading = Reading(data.DECODING_BACKEND, data.MAX_PIXELS, data.ALLOW_OUTSIDE_ROOT, data.CACHE_FOLDER, data.CACHE_GB)
    labels = {name: node.NUM_CLASSES for name, node in cfg.DATASETS.items()}
    several = [n for n, node in cfg.DATASETS.items() if node.get("MULTI_LABEL", data.MULTI_LABEL)]
    multi = cfg.MULTI
    head = Head(cfg.MODEL.DROPOUT_RATE, multi.HEAD_HIDDEN, multi.PROJECTION, multi.EXPANDER, multi.PAPER_QUIRKS)
    own = cfg.TRAIN.DATASET
    return Spec(
        clip=clip,
        labels=labels or {own: cfg.MODEL.NUM_CLASSES},
        several=frozenset(several if labels else [own] * data.MULTI_LABEL),
        # Without DATASETS there is one label space, whatever the data set is called.
        space=(space or own) if labels else own,
        head=head,
        augment=augment,
        views=views or Views(),
        reading=reading,
        patch=tuple(cfg.MODEL.PATCH_SIZE),
        masking=Masking(mask.RATIO, mask.KIND, mask.ROUNDING, mask.DECODER, mask.TARGET, mask.NORMALISE),
        text=Text(cfg.TEXT.TOKENIZER, cfg.TEXT.DICT, cfg.TEXT.MAX_WORDS, cfg.TEXT.KEEP_END),
        act_checkpoint=cfg.MODEL.ACT_CHECKPOINT,
        seed=cfg.RNG_SEED,
    )


# -------------------------------------------------------------------------------------------------------------- text


def flat(cfg: CfgNode, path: tuple[str, ...] = ()) -> dict[str, object]:
    """Dotted key to value of all that must be the same on every rank: the tree without the number of this machine."""
    found: dict[str, object] = {}
    for key, value in cfg.items():
        if isinstance(value, Mapping):
            found |= flat(value, (*path, key))
        elif (*path, key) != ("SHARD_ID",):
            found[".".join((*path, key))] = _plain(value)
    return found


def dump(cfg: CfgNode) -> str:
    """YAML text that `load` reads back to an equal tree."""
    return yaml.safe_dump(_plain(cfg), sort_keys=False, allow_unicode=True)


def _plain(value):
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _copy(value):
    return CfgNode() if isinstance(value, CfgNode) else _plain(value)


def _get(cfg, path):
    for name in path:
        cfg = cfg[name]
    return cfg


def _put(cfg: CfgNode, path: tuple[str, ...], value) -> None:
    for name in path[:-1]:
        cfg = cfg.setdefault(name, CfgNode())
    cfg[path[-1]] = value if isinstance(value, CfgNode) and value else _copy(value)
