"""Keys of facebookresearch/TimeSformer, a fork of PySlowFast (lib/config/defaults.py, tools/train_net.py)."""

from videorl.dialect.rules import Combined, Ignored, Last, Made, Renamed, Rule, Unsupported, given, rows

MODELS = {"vit_base_patch16_224": "TimeSformer"}  # published model -> the registered one
AS_PUBLISHED = (
    "TIMESFORMER.DROPPATH_RATE 0.1 and MODEL.DROPOUT_RATE 0, as in TimeSformer's code; what it fetches, timm's ImageNet"
    " weights of this model, TRAIN.CHECKPOINT_FILE_PATH must name (with TRAIN.CHECKPOINT_EPOCH_RESET True)"
)

OWN_AUGMENTATION = "the augmentation of DeiT is not here; see node AUG"

RULES: dict[str, Rule] = {
    "TRAIN.FINETUNE": Renamed(("TRAIN.CHECKPOINT_EPOCH_RESET",)),
    "MIXUP.ENABLED": Renamed(("MIXUP.ENABLE",)),
    "MIXUP.CUTMIX_MINMAX": Unsupported("boxes of CutMix follow from its Beta distribution", off=(None,), refused=True),
    "MIXUP.MODE": Unsupported("one mixing for the whole batch", off=("batch",), refused=True),
    "GLOBAL_BATCH_SIZE": Combined("TRAIN.GRAD_ACCU_NUM_BATCH"),
    "DATA.CROP_SIZE": Ignored("nothing reads it; see TRAIN_CROP_SIZE and TEST_CROP_SIZE"),
    "DATA.TEMPORAL_EXTENT": Ignored("nothing reads it; see NUM_FRAMES and SAMPLING_RATE"),
    "DATA.DEIT_TRANSFORMS": Unsupported(OWN_AUGMENTATION, off=(False,), refused=True),
    **rows("DATA", "COLOR_JITTER AUTO_AUGMENT RE_PROB", Ignored("read with DEIT_TRANSFORMS alone")),
    "TIMESFORMER.PRETRAINED_MODEL": Combined("TRAIN.CHECKPOINT_FILE_PATH and TRAIN.CHECKPOINT_EPOCH_RESET"),
}


def made(last: Last) -> list[Made]:
    """What TimeSformer's code does beside its keys."""
    published = given(last, "MODEL.MODEL_NAME", "") in MODELS
    return (_as_published(last) if published else []) + _start(last) + _step(last, published)


def _as_published(last: Last) -> list[Made]:
    """Settings that its code holds; they give way to those of the command line."""
    name, dropout = "MODEL.MODEL_NAME", "MODEL.DROPOUT_RATE"
    found = [Made("TIMESFORMER.DROPPATH_RATE", 0.1, (name,), AS_PUBLISHED, front=True)]
    if dropout not in last or last[dropout].line:
        found.append(Made(dropout, 0.0, (name, dropout)))
    return found


def _start(last: Last) -> list[Made]:
    """PRETRAINED_MODEL: a file to take the weights of."""
    name = "TIMESFORMER.PRETRAINED_MODEL"
    if not given(last, name, ""):
        return []
    return [
        Made("TRAIN.CHECKPOINT_FILE_PATH", last[name].value, (name,)),
        Made("TRAIN.CHECKPOINT_EPOCH_RESET", True, (name,)),
    ]


def _step(last: Last, published: bool) -> list[Made]:
    """GLOBAL_BATCH_SIZE, 64 where a file does not say it, asks for as many micro-batches as fill it."""
    if "GLOBAL_BATCH_SIZE" not in last and (not published or "TRAIN.GRAD_ACCU_NUM_BATCH" in last):
        return []
    batch = given(last, "TRAIN.BATCH_SIZE", 64) * given(last, "NUM_SHARDS", 1)
    count = max(1, given(last, "GLOBAL_BATCH_SIZE", 64) // max(1, batch))
    by = ("MODEL.MODEL_NAME", "GLOBAL_BATCH_SIZE", "TRAIN.BATCH_SIZE", "NUM_SHARDS")
    said = f"micro-batches of a step: {count}, as TimeSformer fills a GLOBAL_BATCH_SIZE of 64"
    return [Made("TRAIN.GRAD_ACCU_NUM_BATCH", count, by, "" if "GLOBAL_BATCH_SIZE" in last else said)]
