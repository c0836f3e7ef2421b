"""What is decided about a training run from its videos: settings, each with the reason that the log gives."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import yaml

from videorl import config
from videorl.fit.split import class_weights
from videorl.prepare.files import Facts
from videorl.registry import printable

SCRATCH = "videorl:Own/SCRATCH"
CLIPS = 4000  # that a small model sees while it trains from scratch, for want of weights
LONGEST = 2.5  # seconds of a clip, unless weights say
FEW = 500  # training videos below which only the classifier of given weights is trained
SURE = 20  # videos to validate or test on below which their share that is right says little
SIDED = ("left", "right", "clockwise")  # in names of classes that a mirror would change
LISTS = ("kinetics", "ssv2", "video_list")  # data sets of lists `path label`, of which each takes frames in its way
# What the config of weights may have otherwise, for videos with one label of one set.
ONE_LABEL = {
    "DATA": {"MULTI_LABEL": False, "CLASS_NAMES": "", "VAL_SKIP": 1, "LOCAL_SHARDS": False, "CACHE_FOLDER": ""},
    "MODEL": {"HEAD_ACT": "softmax", "CHECKPOINT_ENTRY": ""},
    "MULTI": {"PROJECTION": False, "EXPANDER": 0, "PAPER_QUIRKS": False},
    "TEST": {"CHECKPOINT_FILE_PATH": ""},
}
UNWANTED = (
    "BATCHES",
    "DATASETS",
    "EVALS",
    "LOSSES",
)  # of the config of given weights: its own data and what is made of it


@dataclass
class Decisions:
    """Settings by dotted key, and why they are so, a line each."""

    settings: dict[str, object] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    def take(self, reason: str, **settings: object) -> None:
        """`DATA__FLIP=False` sets DATA.FLIP."""
        self.settings |= {key.replace("__", "."): value for key, value in settings.items()}
        self.reasons.append(reason)

    def text(self, base: str) -> str:
        """The YAML that `videorl train` takes, over the config `base`."""
        tree: dict = {"_BASE_": base}
        for key, value in self.settings.items():
            *nodes, name = key.split(".")
            node = tree
            for part in nodes:
                node = node.setdefault(part, {})
            node[name] = value
        head = "What `videorl fit` has decided; `videorl train --cfg` with this file repeats it."
        said = "".join(f"# {printable(line)}\n" for line in (head, *self.reasons))
        return said + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def decide(train: Sequence[str], classes: Mapping[str, str]) -> Decisions:
    """What follows from the classes of videos, by path, and those to train on."""
    made, names = Decisions(), sorted(set(classes.values()))
    made.take(
        f"{len(names)} classes: {', '.join(names)}", MODEL__NUM_CLASSES=len(names), MODEL__LOSS_FUNC="cross_entropy"
    )
    if sided := [name for name in names if any(word in name.lower() for word in SIDED)]:
        made.take(f"clips are not mirrored, for {sided[0]} would become another class", DATA__RANDOM_FLIP=False)
    counts = Counter(classes[path] for path in train)
    if weights := class_weights({name: counts[name] for name in names}):
        shown = ", ".join(f"{name} {weight:g}" for name, weight in zip(names, weights))
        loss = {"NAME": "cross_entropy", "CLASS_WEIGHTS": weights}
        made.take(f"classes are of different size: their videos count by {shown}", LOSSES__main=loss)
    return made


def from_scratch(made: Decisions, train: Sequence[str], facts: Mapping[str, Facts], epochs: int) -> None:
    """Adds the size of clips and the length of a run that begins with random weights."""
    seconds = statistics.median(facts[path].seconds for path in train)
    side = statistics.median(min(facts[path].width, facts[path].height) for path in train)
    rate = max(1, min(10, round(min(seconds, LONGEST) * 30 / 8)))
    made.take(
        f"clips of 8 frames over {8 * rate / 30:.1f} s, for videos are {seconds:.1f} s long (median)",
        DATA__NUM_FRAMES=8,
        DATA__SAMPLING_RATE=rate,
    )
    if side < 112:
        made.take(
            f"clips of 64 pixels, for the short side of videos is {side:g} (median)",
            DATA__TRAIN_JITTER_SCALES=[64, 72],
            DATA__TRAIN_CROP_SIZE=64,
            DATA__TEST_CROP_SIZE=64,
        )
    run_length(made, len(train), epochs or max(10, min(100, round(CLIPS / len(train)))))


def from_weights(made: Decisions, train: Sequence[str], file: str, epochs: int, all_layers: bool) -> None:
    """Adds what trains given weights on: their classifier alone, or all layers."""
    made.take(
        f"begins with the weights of {file}",
        TRAIN__CHECKPOINT_FILE_PATH=file,
        TRAIN__CHECKPOINT_EPOCH_RESET=True,
        MIXUP__ENABLE=False,
        AUG__ENABLE=False,
        EMA__ENABLED=False,
    )
    if all_layers:
        made.take("all layers are trained, at a small learning rate", MODEL__FREEZE=False, SOLVER__BASE_LR=5e-5)
    else:
        made.take("only the classifier is trained; --all-layers trains all", MODEL__FREEZE=True, SOLVER__BASE_LR=1e-3)
    made.settings |= {
        "SOLVER.OPTIMIZING_METHOD": "adamw",
        "SOLVER.LR_POLICY": "cosine",
        "SOLVER.BASE_LR_BATCH": 0,
        "SOLVER.LAYER_DECAY": 1.0,
        "SOLVER.COSINE_END_LR": 1e-6,
        "SOLVER.WARMUP_START_LR": 1e-6,
        "SOLVER.WARMUP_STEPS": 0,
        "SOLVER.WARMUP_EPOCHS": 1.0,
        "TRAIN.GRAD_ACCU_NUM_BATCH": 1,
    }
    run_length(made, len(train), epochs or (10 if all_layers else 30))


def run_length(made: Decisions, videos: int, epochs: int) -> None:
    """Epochs, batch, how often is validated, and when training ends early."""
    batch = max(2, min(8, videos // 5))
    made.take(f"batches of {batch}, a fifth of the videos to train on, but 2 to 8", TRAIN__BATCH_SIZE=batch)
    every = max(1, epochs // 12)
    patience = max(3 * every, epochs // 4)
    made.take(
        f"{epochs} epochs, validated every {every}; ends after {patience} epochs without a better validation",
        SOLVER__MAX_EPOCH=epochs,
        TRAIN__EVAL_PERIOD=every,
        TRAIN__CHECKPOINT_PERIOD=every,
        TRAIN__EARLY_STOP=patience,
        TRAIN__BEST_METRIC="val/mean_class",
    )


def base_of(cfg) -> str:
    """The config of given weights as YAML, with neither its data, losses and evaluations nor what goes with these."""
    tree = yaml.safe_load(config.dump(cfg))
    data = cfg.DATASETS.get(cfg.TRAIN.DATASET, {"NAME": cfg.TRAIN.DATASET})["NAME"]
    for node in UNWANTED:
        tree.pop(node)
    for node, keys in ONE_LABEL.items():
        tree[node] |= keys
    for node in ("TRAIN", "TEST"):
        tree[node] |= {"ENABLE": True, "DATASET": data if data in LISTS else "kinetics"}
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
