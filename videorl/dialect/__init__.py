"""Familiar names of other toolkits, turned once, at load, into the one form that everything below reads.

`translate` works on single settings before they are typed: the keys of PySlowFast, MultiTrain, TimeSformer and MMPT,
each family with its table. `sugar` gives MODEL.LOSS_FUNC, TRAIN.EVAL_PERIOD and TEST.* as entries of LOSSES and EVALS.
"""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

from yacs.config import CfgNode

from videorl.dialect import mmpt, multitrain, pyslowfast, timesformer, videomae
from videorl.dialect.rules import Combined, Ignored, Last, Made, Renamed, Rule, Unsupported, Values, is_on, plain
from videorl.registry import DATASETS, EVALS, LOSSES, MODELS, UserError
from videorl.settings import Setting, shown

log = logging.getLogger("videorl")

FAMILIES = (pyslowfast, multitrain, timesformer, videomae, mmpt)
RULES: dict[str, Rule] = {name: rule for family in FAMILIES for name, rule in family.RULES.items()}
SHORT_KEYS = videomae.KEYS  # keys of our own that become others
# What is evaluated where no evaluation is named, and what is best by it.
BEST_METRICS = {"views": "val/top1", "views of several labels": "val/map", "reconstruction": "val/explained"}
MODEL_NAMES: dict[str, str | None] = pyslowfast.MODELS | timesformer.MODELS


def translate(settings: list[Setting], *, tell: bool = True) -> list[Setting]:
    """Settings under the names and values of this toolkit; each published key is logged with what becomes of it.

    Raises `UserError` where a published key asks for what this toolkit does not do. Not so without `tell`.
    """
    last: Last = {".".join(setting.path): setting for setting in settings}
    rules = _rules()
    if tell:
        _refuse(_tell(last, rules), last)
    kept: list[list[Setting]] = [_translated(setting, rules, last) for setting in settings]
    front = []
    for made in (made for family in FAMILIES for made in family.made(last)):
        place, setting = _placed(made, settings, last)
        (front if made.front else kept[place]).append(setting)
        if made.said and tell:
            log.warning("%s: %s", setting.where, made.said)
    return _output_dir([*front, *(setting for group in kept for setting in group)])


def _refuse(refused: list[str], last: Last) -> None:
    check_model(last, MODELS)
    if refused:
        raise UserError(refused[0] + (f" (and {len(refused) - 1} more, see above)" if refused[1:] else ""))


def _rules() -> dict[str, Rule]:
    """The rules of all families, but for keys that a registered component reads under their own name."""
    entries = [registry[name] for registry in (MODELS, DATASETS, LOSSES, EVALS) for name in registry]
    own = {f"{entry.node}.{key}" for entry in entries for key in entry.keys}
    return {name: rule for name, rule in RULES.items() if name not in own} | {"MODEL.MODEL_NAME": _model_names(MODELS)}


def _model_names(models: Collection[str]) -> Values:
    return Values({published: ours for published, ours in MODEL_NAMES.items() if ours in models})


def check_model(last: Last, models: Collection[str]) -> None:
    """Raises `UserError` for a published model that is not among the `models` there are."""
    setting = last.get("MODEL.MODEL_NAME")
    name = _model_names(models).of(setting.value) if setting else ""
    if isinstance(name, str) and name in MODEL_NAMES and name not in models:
        known = ", ".join(sorted(models))
        raise UserError(f"{setting.where}: MODEL.MODEL_NAME: {name} is not available in this version (known: {known})")
    arch = last.get("MODEL.ARCH")
    if setting is None and arch and arch.value in pyslowfast.CONVOLUTIONAL:
        raise UserError(
            f"{arch.where}: MODEL.ARCH {arch.value} without MODEL.MODEL_NAME means SlowFast, which is not available in"
            " this version"
        )


def _tell(last: Last, rules: Mapping[str, Rule]) -> list[str]:
    """Logs what becomes of each published key; returns what is wrong with those that are refused."""
    wrong = []
    for name, setting in last.items():
        rule = rules.get(name)
        outcome = rule and _outcome(rule, setting, last)
        if outcome:
            log.warning("%s: %s %s", setting.where, name, outcome)
        if isinstance(rule, Unsupported) and rule.refused and outcome.startswith("unsupported"):
            wrong.append(f"{setting.where}: {name} {shown(setting.value)} is not supported: {rule.means}")
    return wrong


def _outcome(rule: Rule, setting: Setting, last: Last) -> str:
    """What becomes of a published key, in words; nothing where it is a key of ours with a value of ours."""
    if switch := _off_switch(rule, last):
        return f"ignored ({switch} is off)"
    value = plain(setting.value)
    match rule:
        case Ignored(why):
            return f"ignored ({why})"
        case Renamed(to):
            return f"mapped to {', '.join(to)}"
        case Combined(into):
            return f"mapped to {into}"
        case Values():
            return f"{value} mapped to {rule.of(value)}" if rule.of(value) != value else ""
        case Unsupported(means, off):
            return "ignored (always so here)" if value in off else f"unsupported ({means})"


def _off_switch(rule: Rule, last: Last) -> str:
    """The switch that is off and without which the published code does not read the key, if there is one."""
    while rule.needs:
        if not is_on(last, rule.needs):
            return rule.needs
        rule = RULES[rule.needs]
    return ""


def _translated(setting: Setting, rules: Mapping[str, Rule], last: Last) -> list[Setting]:
    """What takes the place of one setting: keys that are made of several come later, see `Made`."""
    name = ".".join(setting.path)
    if setting.value == {} and any(rule.startswith(f"{name}.") for rule in rules):
        return []
    match rules.get(name):
        case None:
            return [setting]
        case Renamed() as rule if _off_switch(rule, last):
            return []
        case Renamed(to):
            return [setting._replace(path=tuple(path.split("."))) for path in to]
        case Values() as rule if rule.of(setting.value) != plain(setting.value):
            return [setting._replace(value=rule.of(setting.value))]
        case Values():
            return [setting]
    return []


def _placed(made: Made, settings: list[Setting], last: Last) -> tuple[int, Setting]:
    """The place of a setting that follows from others, and the setting with the place of its origin in a file."""
    places = {id(setting): place for place, setting in enumerate(settings)}
    place = max(places[id(last[name])] for name in made.by if name in last)
    return place, settings[place]._replace(path=tuple(made.path.split(".")), value=made.value)


def _output_dir(settings: list[Setting]) -> list[Setting]:
    """`OUTPUT_DIR: .` of a published file becomes runs/<name of the file>.

    On the command line it is the folder that one is in, written as `./`, which a dumped config keeps.
    """
    files = [Path(setting.source).stem for setting in settings if setting.line]
    found = []
    for setting in settings:
        if setting.path == ("OUTPUT_DIR",) and setting.value == ".":
            folder = f"runs/{files[-1]}" if setting.line else "./"
            if setting.line:
                log.warning("%s: OUTPUT_DIR . mapped to %s", setting.where, folder)
            setting = setting._replace(value=folder)
        found.append(setting)
    return found


def sugar(cfg: CfgNode, given: set[str]) -> list[tuple[tuple[str, ...], object]]:
    """PySlowFast's TRAIN.EVAL_PERIOD, TEST.* and MODEL.LOSS_FUNC as (path, value) of entries of EVALS and LOSSES.

    Masked clips (MASK.RATIO) are evaluated by their reconstructions, others by their classes.

    `given`: dotted keys that the user set. Whoever names a loss in LOSSES or an evaluation in EVALS names all of them;
    `val` or `test` stay where one of their keys is given, and both beside entries called test_…. Settings of the user
    come after these.
    """
    own = {name.split(".")[1] for name in given if name.startswith("EVALS.") and name.endswith(".NAME")}
    named = any(not name.startswith("test_") for name in own)

    def wanted(evaluation: str) -> bool:
        return not named or any(name.startswith(f"EVALS.{evaluation}.") for name in given)

    entries = {}
    evaluation = "reconstruction" if cfg.MASK.RATIO else "views"
    if not any(name.startswith("LOSSES.") and name.endswith(".NAME") for name in given):
        entries["LOSSES", cfg.MODEL.LOSS_FUNC] = {"NAME": cfg.MODEL.LOSS_FUNC}
    if cfg.TRAIN.EVAL_PERIOD > 0 and wanted("val"):
        entries["EVALS", "val"] = {
            "NAME": evaluation,
            "DATASET": cfg.TRAIN.DATASET,
            "SPLIT": "val",
            "EVERY": cfg.TRAIN.EVAL_PERIOD,
            "AT_TEST": "val" in own,  # as it is by default, for one that the user names
        }
    if wanted("test"):
        entries["EVALS", "test"] = {
            "NAME": evaluation,
            "DATASET": cfg.TEST.DATASET,
            "SPLIT": "test",
            "CLIPS": 0,
            "CROPS": 0,
        }
    made = [((*path, key), value) for path, node in entries.items() for key, value in node.items()]
    best = "views of several labels" if evaluation == "views" and cfg.DATA.MULTI_LABEL else evaluation
    return [(("TRAIN", "BEST_METRIC"), BEST_METRICS[best]), *made]
