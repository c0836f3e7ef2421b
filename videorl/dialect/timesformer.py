"""Keys of facebookresearch/TimeSformer, a fork of PySlowFast (lib/config/defaults.py, tools/train_net.py)."""

from videorl.dialect.rules import Combined, Ignored, Last, Made, Renamed, Rule, Unsupported, given, rows

# Published model -> the registered one; None: not in this version.
MODELS = {"vit_base_patch16_224": None}

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
    **rows("TIMESFORMER", "ATTENTION_TYPE PRETRAINED_MODEL", Unsupported("no model of this version reads it")),
}


def made(last: Last) -> list[Made]:
    """GLOBAL_BATCH_SIZE, 64 where a file does not say it, asks for as many micro-batches as fill it."""
    published = "MODEL.MODEL_NAME" in last and last["MODEL.MODEL_NAME"].value in MODELS
    if "GLOBAL_BATCH_SIZE" not in last and (not published or "TRAIN.GRAD_ACCU_NUM_BATCH" in last):
        return []
    batch = given(last, "TRAIN.BATCH_SIZE", 64) * given(last, "NUM_SHARDS", 1)
    count = max(1, given(last, "GLOBAL_BATCH_SIZE", 64) // max(1, batch))
    by = ("MODEL.MODEL_NAME", "GLOBAL_BATCH_SIZE", "TRAIN.BATCH_SIZE", "NUM_SHARDS")
    said = f"micro-batches of a step: {count}, as TimeSformer fills a GLOBAL_BATCH_SIZE of 64"
    return [Made("TRAIN.GRAD_ACCU_NUM_BATCH", count, by, "" if "GLOBAL_BATCH_SIZE" in last else said)]
