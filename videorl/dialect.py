"""Familiar names of other toolkits, turned once, at load, into the one form that everything below reads.

`translate` works on single settings before they are typed (old names, old values); `sugar` gives PySlowFast's
MODEL.LOSS_FUNC, TRAIN.EVAL_PERIOD and TEST.* as entries of LOSSES and EVALS.
"""

import logging

from yacs.config import CfgNode

log = logging.getLogger("videorl")

# Keys of PySlowFast YAMLs that this toolkit has no use for, and why.
IGNORED = {
    "MODEL.ARCH": "MODEL_NAME alone picks the model",
    "BN.USE_PRECISE_STATS": "batch-norm statistics are those of training",
    "BN.NUM_BATCHES_PRECISE": "batch-norm statistics are those of training",
    "DATA.REVERSE_INPUT_CHANNEL": "videos are read as RGB, which is what the key made of OpenCV's BGR frames",
    "PREFETCH.NUM_LOADERS": "see DATA_LOADER.PREFETCH",
    "TRAIN.CHECKPOINT_IN_INIT": "weights are taken by name and shape; those of image models are not inflated",
    "TENSORBOARD.CONFUSION_MATRIX.ENABLE": "written whenever TENSORBOARD.ENABLE is on",
}


def translate(settings: list) -> list:
    """Settings under the names and values of this toolkit; what is left out is logged."""
    kept = []
    for setting in settings:
        name = ".".join(setting.path)
        if name in IGNORED:
            log.warning("%s: %s is not used here: %s", setting.where, name, IGNORED[name])
        elif name == "DATA.DECODING_BACKEND" and setting.value == "torchvision":
            log.warning("%s: the torchvision decoder no longer exists; DECODING_BACKEND auto is used", setting.where)
            kept.append(setting._replace(value="auto"))
        elif name == "AUG.COLOR_JITTER" and setting.value is None:
            kept.append(setting._replace(value=0.0))
        else:
            kept.append(setting)
    return kept


def sugar(cfg: CfgNode, given: set[str]) -> list[tuple[tuple[str, ...], object]]:
    """PySlowFast's TRAIN.EVAL_PERIOD, TEST.* and MODEL.LOSS_FUNC as (path, value) of entries of EVALS and LOSSES.

    `given`: nodes that the user set; whoever writes LOSSES names all losses. Settings of the user come after these.
    """
    entries = {}
    if "LOSSES" not in given:
        entries["LOSSES", cfg.MODEL.LOSS_FUNC] = {"NAME": cfg.MODEL.LOSS_FUNC}
    if cfg.TRAIN.EVAL_PERIOD > 0:
        entries["EVALS", "val"] = {
            "NAME": "views",
            "DATASET": cfg.TRAIN.DATASET,
            "SPLIT": "val",
            "EVERY": cfg.TRAIN.EVAL_PERIOD,
            "AT_TEST": False,
        }
    entries["EVALS", "test"] = {
        "NAME": "views",
        "DATASET": cfg.TEST.DATASET,
        "SPLIT": "test",
        "CLIPS": cfg.TEST.NUM_ENSEMBLE_VIEWS,
        "CROPS": cfg.TEST.NUM_SPATIAL_CROPS,
    }
    return [((*path, key), value) for path, node in entries.items() for key, value in node.items()]
