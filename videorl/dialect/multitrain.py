"""Keys of JunweiLiang/MultiTrain, a fork of PySlowFast (slowfast/config/defaults.py, tools/train_net.py)."""

from videorl.dialect.rules import (
    Combined,
    Ignored,
    Last,
    Made,
    Renamed,
    Rule,
    Unsupported,
    Values,
    given,
    is_on,
    plain,
    rows,
)
from videorl.registry import UserError

HEADS, PROJECTION, INFORMATIVE = "MODEL.USE_MULTI_HEAD", "MODEL.MULTI_ADD_CROSS_PROJ", "MODEL.USE_INF_LOSS"
OFF = (False,)
MLP_WIDTH, EXPANDER_WIDTH = 2048, 4096
# Published loss of a head -> activation of its scores. With sigmoid, videos have several labels.
PUBLISHED_LOSSES = {"soft_cross_entropy": "softmax", "bce_logit": "sigmoid"}
ALL = ("multi_dataset_seq", "all")  # as a data set: every entry of DATASETS

RULES: dict[str, Rule] = {
    "TRAIN.DATASET": Values(dict([ALL])),
    "TEST.DATASET": Values(dict([ALL])),
    # Heads
    HEADS: Combined("DATASETS and LOSSES"),
    **rows(
        "MODEL",
        "MULTI_DATASETS MULTI_NUM_CLASSES MULTI_REPLICAS MULTI_LOSS_FUNCS MULTI_HEAD_ACT MULTI_PATH_TO_DATA_DIR"
        " MULTI_PATH_PREFIX",
        Combined("DATASETS", needs=HEADS),
    ),
    "MODEL.MULTI_LOSS_WEIGHTS": Combined("LOSSES.heads.WEIGHTS", needs=HEADS),
    "MODEL.MULTI_USE_MTL_WEIGHT": Combined("LOSSES.heads.LEARN_WEIGHTS", needs=HEADS),
    "MODEL.MULTI_USE_MLP": Combined("MULTI.HEAD_HIDDEN", needs=HEADS),
    "MODEL.USE_HEAD_ACT_IN_TRAIN": Unsupported("losses take logits", OFF, refused=True),
    "MODEL.GET_FEATURE": Unsupported("the model gives scores", OFF, refused=True),
    "MODEL.LOAD_VISUAL": Ignored("nothing reads it"),
    "DATA.MODEL_DIFF_DATA": Combined("EVALS.test.HEAD"),
    "DATA.NUM_CLASSES": Combined("a check of the data set's classes", needs=HEADS),
    # Projections
    PROJECTION: Combined("MULTI.PROJECTION", needs=HEADS),
    "MODEL.MULTI_CROSS_PROJ_ADD_TO_PRED": Combined("LOSSES.heads.ADD_TO_PRED", needs=PROJECTION),
    "MODEL.MULTI_PROJ_LOSS_WEIGHT": Combined("LOSSES.heads.PROJECTION_WEIGHT", needs=PROJECTION),
    "MODEL.MULTI_PROJ_LOSS_FUNC": Unsupported(
        "projected logits have the loss of the head that they go to",
        ("soft_cross_entropy",),
        refused=True,
        needs=PROJECTION,
    ),
    **rows(
        "MODEL",
        "MULTI_PROJ_SPARSITY_LOSS_TYPE MULTI_PROJ_SPARSITY_WEIGHT",
        Combined("LOSSES.sparsity", needs=PROJECTION),
    ),
    "MODEL.LOAD_MULTI_PROJ_INIT_FILE": Unsupported(
        "projections begin with random numbers", ("",), refused=True, needs=PROJECTION
    ),
    "MODEL.MULTI_FIX_PROJ": Unsupported("projections are trained, as they were in MultiTrain in spite of it", OFF),
    "MODEL.MULTI_PROJ_TRAIN_DIFF_LR": Unsupported(
        "projections have the learning rate of all parameters", OFF, refused=True, needs=PROJECTION
    ),
    **rows("MODEL", "MULTI_PROJ_LR MULTI_PROJ_MOMENTUM", Ignored("read with MULTI_PROJ_TRAIN_DIFF_LR alone")),
    "MODEL.MULTI_USE_MOCO": Unsupported(
        "projections take the logits of the heads themselves", OFF, refused=True, needs=PROJECTION
    ),
    "MODEL.MULTI_MOCO_MOMENTUM": Ignored("read with MULTI_USE_MOCO alone"),
    # Informative loss
    INFORMATIVE: Combined("LOSSES.informative"),
    "MODEL.INF_LOSS_WEIGHT": Combined("LOSSES.informative.WEIGHT", needs=INFORMATIVE),
    "MODEL.INF_STD_WEIGHT": Combined("LOSSES.informative.STD_WEIGHT", needs=INFORMATIVE),
    "MODEL.INF_COVAR_WEIGHT": Combined("LOSSES.informative.COVARIANCE_WEIGHT", needs=INFORMATIVE),
    "MODEL.USE_INF_LEARN_WEIGHT": Combined("LOSSES.informative.LEARN_WEIGHT", needs=INFORMATIVE),
    "MODEL.USE_INF_EXPANDER": Combined("MULTI.EXPANDER", needs=INFORMATIVE),
    # The model
    "MVIT.CHANNEL_EXPAND_FRONT": Renamed(("MVIT.DIM_MUL_IN_ATT", "MVIT.SKIP_PROJ_RAW")),
    "MVIT.Q_POOL_RESIDUAL": Renamed(("MVIT.RESIDUAL_POOLING",)),
    "MVIT.Q_POOL_ALL": Combined("MVIT.POOL_Q_STRIDE"),
    **rows("MVIT", "REL_POS_EMBED USE_MEM NO_NORM_BEFORE_AVG", Unsupported("this MViT is not here", OFF, refused=True)),
    **rows("MVIT", "USE_SYM_REL NO_EINSUM USE_SKEW", Ignored("read with REL_POS_EMBED alone")),
    **rows("MVIT", "MEM_COMPRESS_FACTOR MAX_MEM_LEN", Ignored("read with USE_MEM alone")),
    **rows("MVIT", "DIRECT_INPUT fixed_attn_scale POOL_SKIP_USE_CONV", Ignored("results do not depend on it")),
    # Training and testing
    "TRAIN.GATHER_BEFORE_LOSS": Ignored("losses that compare samples always see the whole step"),
    "TRAIN.EVAL_FIRST": Unsupported("the first validation comes after EVAL_PERIOD epochs", OFF),
    "TRAIN.EVAL_AND_EXIT": Unsupported("set TRAIN.ENABLE False to evaluate alone", OFF, refused=True),
    "TRAIN.NO_LOAD_OPT_STATE": Unsupported(
        "a run goes on with its optimizer; TRAIN.CHECKPOINT_EPOCH_RESET True takes weights alone", OFF, refused=True
    ),
    **rows(
        "TRAIN",
        "CHECKPOINT_REPLACE_NAME_OLD CHECKPOINT_REPLACE_NAME_NEW",
        Unsupported("names in a checkpoint are taken as they stand; rename them in the file", ([],), refused=True),
    ),
    **rows("TRAIN", "USE_MOCO MOCO_MOMENTUM", Ignored("nothing reads it")),
    "TEST.ENABLE_SAVE": Ignored("scores of every evaluation are in OUTPUT_DIR/predictions"),
    "DATA.TEST_SKIP": Unsupported("every line of test.csv is read", (1,), refused=True),
    "DATA.UNIFORM_SAMPLE_FRAME": Ignored("nothing reads it"),
    "DATA.DECODING_BACKEND_GPU_ENABLE": Ignored("videos are decoded on the CPU"),
    "TEST.NO_LOG_CONFIG": Ignored("run.json holds all settings"),
    "LOG_CFG": Ignored("run.json holds all settings"),
    # Detection
    "DETECTION.USE_CUBE_PROP": Ignored("read with DETECTION.ENABLE alone"),
    "DETECTION.USE_SPATIAL_MAXPOOL_BEFORE_PROJ": Unsupported("features are averaged", OFF, refused=True),
    **rows(
        "AVA",
        "VIDEO_PATH LOAD_FROM_VIDEO ADD_KINETICS IS_TEST_ON_KINETICS KINETICS_VIDEO_FRAME_COUNT USE_LABEL_SMOOTHING"
        " LABEL_SMOOTHING_EPS",
        Ignored("the data set AVA is not in this version"),
    ),
}

# Keys that files of no other toolkit have, so that a file with one means what MultiTrain meant.
SIGNS = [name for name in RULES if name.startswith(("MODEL.MULTI_", "MODEL.USE_INF", "MODEL.INF_", "MVIT.Q_POOL"))]
SIGNS += [HEADS, "MVIT.CHANNEL_EXPAND_FRONT", "TRAIN.GATHER_BEFORE_LOSS"]


def made(last: Last) -> list[Made]:
    """What published keys say together. Raises `UserError` where they contradict each other."""
    found = _other_videos(last)
    signs = tuple(name for name in SIGNS if name in last)
    if signs:
        found += _habits(last, signs[0]) + _pooling(last)
    if is_on(last, HEADS):
        sets = DataSets(last)
        return found + sets.made() + _head_losses(last, sets) + _informative(last)
    for name, value in ((INFORMATIVE, True), ("TRAIN.DATASET", ALL[0])):
        if name in last and plain(last[name].value) == value:
            raise UserError(f"{last[name].where}: {name} {value} needs {HEADS} True")
    return found


def _habits(last: Last, sign: str) -> list[Made]:
    """What MultiTrain does without a key for it."""
    found = {"TRAIN.BATCH_SIZE_SCOPE": "global", "MVIT.POOL_NORM_EPS": 1e-5}
    return [
        Made(path, value, (sign,), f"{path} {value}, as in all files of MultiTrain")
        for path, value in found.items()
        if path not in last
    ]


def _pooling(last: Last) -> list[Made]:
    """Q_POOL_ALL: every block pools its queries, those that POOL_Q_STRIDE does not name with stride 1."""
    if not is_on(last, "MVIT.Q_POOL_ALL"):
        return []
    named = {row[0]: row for row in given(last, "MVIT.POOL_Q_STRIDE", [], list[list[int]]) if row}
    rows = [named.get(i, [i, 1, 1, 1]) for i in range(given(last, "MVIT.DEPTH", 16))]
    return [Made("MVIT.POOL_Q_STRIDE", rows, ("MVIT.Q_POOL_ALL", "MVIT.POOL_Q_STRIDE", "MVIT.DEPTH"))]


def _other_videos(last: Last) -> list[Made]:
    """MODEL_DIFF_DATA: the head of TRAIN.DATASET scores the videos of TEST.DATASET."""
    if not is_on(last, "DATA.MODEL_DIFF_DATA"):
        return []
    head = given(last, "TRAIN.DATASET", "kinetics")
    if head in ALL:
        where = last["DATA.MODEL_DIFF_DATA"].where
        raise UserError(
            f"{where}: DATA.MODEL_DIFF_DATA True: set TRAIN.DATASET to the data set whose head gives scores"
        )
    return [Made("EVALS.test.HEAD", head, ("DATA.MODEL_DIFF_DATA", "TRAIN.DATASET"))]


class DataSets:
    """The published lists of MODEL.MULTI_*, one value for each data set."""

    def __init__(self, last: Last):
        self.last = last
        self.names = given(last, "MODEL.MULTI_DATASETS", ["kinetics", "mmit", "activitynet"], list[str])
        self.classes = self._each("NUM_CLASSES", [700, 292, 200], int)
        self.replicas = self._each("REPLICAS", [1] * len(self.names), int)
        self.weights = self._each("LOSS_WEIGHTS", [1.0, 10.0, 1.0][: len(self.names)], float)
        self.several = self._each_several()
        self.train = given(last, "TRAIN.DATASET", "kinetics")
        self.test = given(last, "TEST.DATASET", "kinetics")
        if len({*self.names}) < len(self.names):
            where = self.last.get("MODEL.MULTI_DATASETS", self.last[HEADS]).where
            raise UserError(f"{where}: MODEL.MULTI_DATASETS {self.names}: a name stands there twice")
        self._check_names()
        self._check_classes()

    def _each(self, key: str, default: list, kind: type) -> list:
        name = f"MODEL.MULTI_{key}"
        values = given(self.last, name, default, list[kind])
        if len(values) != len(self.names):
            where = self.last.get(name, self.last[HEADS]).where
            raise UserError(
                f"{where}: {name} has {len(values)} values, MODEL.MULTI_DATASETS {len(self.names)}; give one for each"
            )
        return values

    def _each_several(self) -> list[bool]:
        """Whether videos have several labels, of each data set."""
        losses = self._each("LOSS_FUNCS", ["soft_cross_entropy", "bce_logit", "soft_cross_entropy"], str)
        acts = self._each("HEAD_ACT", ["softmax", "sigmoid", "softmax"], str)
        for loss, act in zip(losses, acts, strict=True):
            if PUBLISHED_LOSSES.get(loss) != act:
                expected = " or ".join(" with ".join(pair) for pair in PUBLISHED_LOSSES.items())
                where = self.last.get("MODEL.MULTI_LOSS_FUNCS", self.last[HEADS]).where
                raise UserError(f"{where}: MODEL.MULTI_LOSS_FUNCS {loss} with {act}: expected {expected}")
        return [act == "sigmoid" for act in acts]

    def _check_names(self) -> None:
        """The head that is trained or tested alone exists, and so does one for the tested data set."""
        wanted = {"TRAIN.DATASET": self.train} if "TRAIN.DATASET" in self.last else {}
        tested = given(self.last, "TEST.ENABLE", True) and not is_on(self.last, "DATA.MODEL_DIFF_DATA")
        if "TEST.DATASET" in self.last and tested:
            wanted["TEST.DATASET"] = self.test
        for key, name in wanted.items():
            if name not in (*self.names, *ALL):
                heads = ", ".join(self.names)
                raise UserError(f"{self.last[key].where}: {key} {name} has no head; MODEL.MULTI_DATASETS has {heads}")

    def _check_classes(self) -> None:
        """The numbers of classes of a run with one head are those of that head. 1 is what MultiTrain says for none."""
        if self.train in ALL:
            return
        classes = dict(zip(self.names, self.classes, strict=True))
        for key, name in (("MODEL.NUM_CLASSES", self.train), ("DATA.NUM_CLASSES", self.test)):
            found = given(self.last, key, 1)
            if name in classes and found not in (1, classes[name]):
                raise UserError(
                    f"{self.last[key].where}: {key} {found}, but the head {name} has {classes[name]} classes"
                    f" (MODEL.MULTI_NUM_CLASSES); set {key} {classes[name]}"
                )

    def made(self) -> list[Made]:
        found = []
        for i, name in enumerate(self.names):
            node = f"DATASETS.{name}"
            several = ("MODEL.MULTI_LOSS_FUNCS", "MODEL.MULTI_HEAD_ACT", HEADS)
            found += [
                Made(f"{node}.NAME", name, ("MODEL.MULTI_DATASETS", HEADS), front=True),
                Made(f"{node}.NUM_CLASSES", self.classes[i], ("MODEL.MULTI_NUM_CLASSES", HEADS)),
                Made(f"{node}.REPLICAS", self.replicas[i], ("MODEL.MULTI_REPLICAS", HEADS)),
                Made(f"{node}.MULTI_LABEL", self.several[i], several),
            ]
            if not self._reads_global_paths(name):
                found += self._paths(i, node)
        if "DATA.MULTI_LABEL" in self.last:
            said = "DATA.MULTI_LABEL ignored (DATASETS says it of each data set)"
            found.append(Made("DATA.MULTI_LABEL", False, ("DATA.MULTI_LABEL",), said))
        return found

    def _reads_global_paths(self, name: str) -> bool:
        """A data set that is trained or tested alone lies at DATA.PATH_TO_DATA_DIR, where that is given."""
        alone = self.train not in ALL and name in (self.train, self.test)
        return alone and bool(given(self.last, "DATA.PATH_TO_DATA_DIR", ""))

    def _paths(self, i: int, node: str) -> list[Made]:
        found = []
        for published, key in (("PATH_TO_DATA_DIR", "ANNOTATIONS"), ("PATH_PREFIX", "ROOT")):
            name = f"MODEL.MULTI_{published}"
            if given(self.last, name, [], list[str]):
                found.append(Made(f"{node}.{key}", self._each(published, [], str)[i], (name,)))
        return found


def _head_losses(last: Last, sets: DataSets) -> list[Made]:
    weights, share = "MODEL.MULTI_LOSS_WEIGHTS", "MODEL.MULTI_PROJ_LOSS_WEIGHT"
    add, learn, mlp = "MODEL.MULTI_CROSS_PROJ_ADD_TO_PRED", "MODEL.MULTI_USE_MTL_WEIGHT", "MODEL.MULTI_USE_MLP"
    return [
        Made("MULTI.HEAD_HIDDEN", MLP_WIDTH * is_on(last, mlp), (mlp, HEADS)),
        Made("MULTI.PROJECTION", is_on(last, PROJECTION), (PROJECTION, HEADS)),
        Made("LOSSES.heads.NAME", "multi_head", (HEADS,), front=True),
        Made("LOSSES.heads.WEIGHTS", sets.weights, (weights, HEADS)),
        Made("LOSSES.heads.PROJECTION_WEIGHT", given(last, share, 1.0), (share, HEADS)),
        Made("LOSSES.heads.ADD_TO_PRED", is_on(last, add), (add, HEADS)),
        Made("LOSSES.heads.LEARN_WEIGHTS", is_on(last, learn), (learn, HEADS)),
        *_sparsity(last),
    ]


def _sparsity(last: Last) -> list[Made]:
    kind, weight = "MODEL.MULTI_PROJ_SPARSITY_LOSS_TYPE", "MODEL.MULTI_PROJ_SPARSITY_WEIGHT"
    norm = given(last, kind, "")
    if not norm or not is_on(last, PROJECTION):
        return []
    if norm != "L1":
        raise UserError(f"{last[kind].where}: {kind} {norm} trains nothing: it has no gradient; expected L1")
    return [
        Made("LOSSES.sparsity.NAME", "sparsity", (kind,), front=True),
        Made("LOSSES.sparsity.WEIGHT", given(last, weight, 1e-4), (kind, weight)),
    ]


def _informative(last: Last) -> list[Made]:
    expander = is_on(last, INFORMATIVE) and is_on(last, "MODEL.USE_INF_EXPANDER")
    found = [Made("MULTI.EXPANDER", EXPANDER_WIDTH * expander, ("MODEL.USE_INF_EXPANDER", INFORMATIVE, HEADS))]
    if not is_on(last, INFORMATIVE):
        return found
    found.append(Made("LOSSES.informative.NAME", "informative", (INFORMATIVE,), front=True))
    for key, published, default in (
        ("WEIGHT", "INF_LOSS_WEIGHT", 0.1),
        ("STD_WEIGHT", "INF_STD_WEIGHT", 25.0),
        ("COVARIANCE_WEIGHT", "INF_COVAR_WEIGHT", 1.0),
        ("LEARN_WEIGHT", "USE_INF_LEARN_WEIGHT", False),
    ):
        name = f"MODEL.{published}"
        found.append(Made(f"LOSSES.informative.{key}", given(last, name, default), (name, INFORMATIVE)))
    return found
