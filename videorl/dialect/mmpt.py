"""Project files of MMPT (facebookresearch/fairseq, examples/MMPT), which VideoCLIP and Norton are run by.

One file says what is trained or what is tested (`dataset.split: test`). Its batch sizes are those of a GPU.
"""

import os

from videorl.dialect.rules import Combined, Ignored, Last, Made, Renamed, Rule, Unsupported, given, is_on, plain, rows
from videorl.registry import DATASETS, UserError

PRETRAIN = "features"
SETS = {  # meta_processor -> data set
    "ShardedHow2VideoRetriMetaProcessor": PRETRAIN,
    "ShardedHow2MetaProcessor": PRETRAIN,
    "MSRVTTMetaProcessor": "msrvtt_features",
    "MSRVTTQAMetaProcessor": "msrvtt_qa",
    "YoucookMetaProcessor": "youcook2_features",
    "YoucookFullVideoBGMetaProcessor": "youcook2_windows",
    "COINActionSegmentationMetaProcessor": "coin",
}
METRICS = {  # metric -> evaluation
    "RetrievalMetric": "retrieval",
    "FullVideoRetrievalMetric": "full_video",
    "FullVideoBGRetrievalMetric": "full_video",
    "QAMetric": "text_choice",
    "COINActionSegmentationMetric": "segments",
}
SAMPLERS = {  # aligner, but for "Aligner" and what stands before -> FEATURES.SAMPLER
    "Overlapped": "overlapped",
    "VariedLen": "varied",
    "FixedLen": "fixed",
    "StartClip": "start",
    "How2MILNCE": "nearest",
}
MODELS = {
    "MMFusionSeparate": "VideoCLIP",
    "MMFusionSeparateFullVideoBGRetrieval": "VideoCLIP",
    "MMFusionSeparateActionSegmentation": "VideoCLIPFrames",
}
DIRECTIONS = {"MMContraLoss": "both", "T2VContraLoss": "t2v", "V2TContraLoss": "v2t"}
LOSS = "LOSSES.norton"
NORTON = {  # key of the loss -> that of ours
    "loss.beta": "SOFT_TARGETS",
    "loss.sinkhorn_iterations": "ITERATIONS",
    "loss.alpha_lse": "ALPHA",
    "loss.fusion_weight": "COARSE_WEIGHT",
    "loss.sequence_contrast.sequence_contrast_weight": "SEQUENCE_WEIGHT",
    "loss.sequence_contrast.threshold": "SEQUENCE_LENGTH",
    "loss.sequence_contrast.prompt_ratio": "BUCKET",
    "loss.sequence_contrast.scale": "ENTROPY",
}
ANNOTATIONS = ("dataset.trainval_annotation", "dataset.anno_path", "dataset.train_path", "dataset.test_path")
BY_DATA_SET = "the data set says how its files are read"

RULES: dict[str, Rule] = {
    "dataset.split": Combined("TRAIN.ENABLE and TEST.ENABLE"),
    "dataset.meta_processor": Combined("TRAIN.DATASET, or an entry of EVALS"),
    **rows("dataset", "video_processor text_processor", Ignored(BY_DATA_SET)),
    "dataset.aligner": Combined("FEATURES.SAMPLER, of other data sets to nothing: they say what a clip is"),
    "dataset.bert_name": Combined("TEXT.TOKENIZER"),
    "dataset.vfeat_dir": Combined("ROOT of the data set"),
    "dataset.tfeat_dir": Renamed(("FEATURES.CAPTIONS",)),
    **rows("dataset", "train_path test_path", Combined("ANNOTATIONS of the data set, or the meta file of its ROOT")),
    "dataset.trainval_annotation": Combined("ANNOTATIONS of the data set"),
    "dataset.anno_path": Combined("HTM_ALIGN.ANNOTATIONS"),
    "dataset.val_path": Ignored("what is evaluated while training are entries of EVALS"),
    "dataset.json_path": Renamed(("MSRVTT_FEATURES.SENTENCES",)),
    "dataset.jsfusion_path": Ignored("the published list of training videos has none of these"),
    "dataset.dup": Ignored("each sentence of a video is a sample, of MSR-VTT 20"),
    "dataset.use_annotation_text": Unsupported("texts are those of the annotations", (True,), refused=True),
    "dataset.subsampling": Unsupported("set FEATURES.CLIPS", (1,), refused=True),
    "dataset.max_video_len": Combined("SECONDS of the data set"),
    "dataset.max_len": Combined("TEXT.MAX_WORDS, which is less by max_video_len and 1"),
    **rows("dataset", "sampled_min_len sampled_max_len", Combined("FEATURES.TOKENS")),
    **rows("dataset", "sampled_video_min_len sampled_video_max_len", Combined("FEATURES.OVERLAP_SECONDS")),
    "dataset.num_video_per_batch": Combined("BATCHES.GROUP and TRAIN.BATCH_SIZE"),
    "dataset.clip_per_video": Combined("FEATURES.CLIPS"),
    "dataset.sliding_window": Combined("COIN.STRIDE; of YouCook2 it is WINDOW"),
    "dataset.sliding_window_size": Combined("WINDOW of the data set"),
    **rows("dataset", "lazy_vfeat_mask num_iso_layer", Ignored("results do not depend on it")),
    **rows("dataset", "mfm_probability mlm_probability mm_prob", Ignored("losses of masked inputs alone read it")),
    # The trainer
    "fairseq.common.tensorboard_logdir": Ignored("see TENSORBOARD"),
    "fairseq.common.log_interval": Renamed(("LOG_PERIOD",)),
    "fairseq.common.fp16": Renamed(("TRAIN.MIXED_PRECISION",)),
    "fairseq.dataset.num_workers": Renamed(("DATA_LOADER.NUM_WORKERS",)),
    "fairseq.dataset.batch_size": Combined("TRAIN.BATCH_SIZE or TEST.BATCH_SIZE, of one GPU"),
    "fairseq.dataset.valid_subset": Ignored("see dataset.split"),
    "fairseq.optimization.lr": Combined("SOLVER.BASE_LR"),
    "fairseq.optimization.clip_norm": Renamed(("SOLVER.CLIP_GRAD_L2NORM",)),
    "fairseq.optimization.optimizer": Renamed(("SOLVER.OPTIMIZING_METHOD",)),
    "fairseq.optimization.adam_betas": Renamed(("SOLVER.BETAS",)),
    "fairseq.optimization.lr_scheduler": Combined("SOLVER.LR_POLICY linear"),
    "fairseq.optimization.total_num_update": Renamed(("SOLVER.DECAY_STEPS",)),
    "fairseq.optimization.warmup_updates": Renamed(("SOLVER.WARMUP_STEPS",)),
    "fairseq.optimization.weight_decay": Renamed(("SOLVER.WEIGHT_DECAY",)),
    "fairseq.optimization.ddp_backend": Ignored("see DIST_BACKEND"),
    "fairseq.optimization.max_epoch": Renamed(("SOLVER.MAX_EPOCH",)),
    "fairseq.checkpoint.restore_file": Renamed(("TRAIN.CHECKPOINT_FILE_PATH",)),
    "fairseq.checkpoint.reset_optimizer": Renamed(("TRAIN.CHECKPOINT_EPOCH_RESET",)),
    **rows("fairseq.checkpoint", "reset_dataloader reset_meters", Ignored("as reset_optimizer says")),
    "fairseq.checkpoint.save_dir": Renamed(("OUTPUT_DIR",)),
    "fairseq.checkpoint.save_interval_updates": Renamed(("TRAIN.CHECKPOINT_STEPS",)),
    "fairseq.checkpoint.keep_last_epochs": Renamed(("TRAIN.KEEP_CHECKPOINTS",)),
    "fairseq.checkpoint.keep_interval_updates": Ignored("TRAIN.KEEP_CHECKPOINTS counts all"),
    "fairseq.common_eval.path": Renamed(("TEST.CHECKPOINT_FILE_PATH",)),
    **rows("eval", "save_path", Ignored("results are in OUTPUT_DIR")),
    **{name: Ignored("see NUM_GPUS and --num_shards") for name in ("task_type", "slurm_config")},
    # Model and loss
    "model.model_cls": Combined("MODEL.MODEL_NAME"),
    **rows("model", "mm_encoder_cls video_encoder_cls text_encoder_cls", Ignored("MODEL.MODEL_NAME says which")),
    "model.num_hidden_video_layers": Renamed(("VIDEOCLIP.VIDEO_LAYERS",)),
    "model.layernorm_only": Combined("VIDEOCLIP.TRAIN"),
    "loss.loss_cls": Combined(LOSS),
    "loss.sequence_contrast": Combined(f"{LOSS}.SEQUENCE_WEIGHT 0"),
    **{name: Combined(f"{LOSS}.{key}") for name, key in NORTON.items()},
    # Batches of neighbours, and what is measured
    "task": Combined("BATCHES.NAME"),
    "retri_epoch": Combined("BATCHES.FIRST_EPOCH"),
    "num_cands": Combined("BATCHES.NEIGHBOURS"),
    "centroids": Combined("BATCHES.CELLS"),
    "examples_per_cent_to_train": Unsupported("cells are made from 48 vectors each", (48,), refused=True),
    **{name: Ignored("BATCHES.NAME says which") for name in ("vectorpool_cls", "retriever_cls")},
    "metric": Combined("NAME of an entry of EVALS"),
    "predictor": Ignored("the evaluation says what it needs"),
}
RETRIEVAL = {"retri_epoch": "FIRST_EPOCH", "num_cands": "NEIGHBOURS", "centroids": "CELLS"}


def made(last: Last) -> list[Made]:
    """What published keys say together. Raises `UserError` where they ask for what is not here."""
    signs = [name for name in last if name in RULES]
    if not signs:
        return []
    name = _chosen(last, "dataset.meta_processor", SETS, "htm_align" if "dataset.anno_path" in last else PRETRAIN)
    testing = given(last, "dataset.split", "train") == "test" or name in ("htm_align", "msrvtt_qa")
    found = _data(last, name) + _texts(last, signs) + _model(last, signs) + _step(last, testing)
    return found + (_evaluation(last, name) if testing else _training(last, name, signs))


def _chosen(last: Last, key: str, ours: dict, default: str = "") -> str:
    """Our name of what a key names."""
    value = given(last, key, "")
    if value and value not in ours:
        raise UserError(f"{last[key].where}: {key} {value} is not here: expected one of {', '.join(ours)}")
    return ours.get(value, default)


def _data(last: Last, name: str) -> list[Made]:
    """The node of the data set. Of pairs of keys both must be there, of files of annotations the first counts."""
    node, taken = DATASETS[name].node, set(DATASETS[name].keys)
    found = []
    for key, ours in (
        ("dataset.vfeat_dir", "ROOT"),
        ("dataset.max_video_len", "SECONDS"),
        ("dataset.sliding_window_size", "WINDOW"),
        ("dataset.sliding_window", "STRIDE"),
        ("dataset.clip_per_video", "CLIPS"),
        *((key, "ANNOTATIONS") for key in [key for key in ANNOTATIONS if key in last][:1]),
    ):
        if key in last and ours in taken:
            found.append(Made(f"{node}.{ours}", last[key].value, (key,)))
    if name == "youcook2_windows" and _value(last, "dataset.sliding_window") != _value(
        last, "dataset.sliding_window_size"
    ):
        raise UserError(f"{last['dataset.meta_processor'].where}: sliding_window and its size: expected the same")
    if name == PRETRAIN:
        if sampler := _sampler(last):
            found.append(Made("FEATURES.SAMPLER", sampler, ("dataset.aligner",)))
        for least, most, ours in (
            ("dataset.sampled_min_len", "dataset.sampled_max_len", "TOKENS"),
            ("dataset.sampled_video_min_len", "dataset.sampled_video_max_len", "OVERLAP_SECONDS"),
        ):
            if least in last and most in last:
                found.append(Made(f"FEATURES.{ours}", [last[least].value, last[most].value], (least, most)))
    return found


def _value(last: Last, key: str) -> object:
    return last[key].value if key in last else None


def _sampler(last: Last) -> str:
    aligner = given(last, "dataset.aligner", "")
    known = [ours for published, ours in SAMPLERS.items() if aligner.removesuffix("Aligner").endswith(published)]
    if aligner and not known:
        raise UserError(
            f"{last['dataset.aligner'].where}: dataset.aligner {aligner} is not here: expected {', '.join(SAMPLERS)}"
        )
    return known[0] if known else ""


def _texts(last: Last, signs: list[str]) -> list[Made]:
    name = given(last, "dataset.bert_name", "bert-base-uncased")
    found = [_said("TEXT.TOKENIZER", name if os.path.exists(name) else f"hub:{name}", "dataset.bert_name", last, signs)]
    keys = ("dataset.max_len", "dataset.max_video_len")
    if all(key in last for key in keys):
        length, seconds = (given(last, key, 0) for key in keys)
        found.append(Made("TEXT.MAX_WORDS", length - seconds - 1, keys))
    return found


def _said(path: str, value: object, key: str, last: Last, signs: list[str]) -> Made:
    """What a key says, or where it is not there the default of its code, which gives way to all others."""
    return Made(path, value, (key,) if key in last else tuple(signs), front=key not in last)


def _model(last: Last, signs: list[str]) -> list[Made]:
    name, key = _chosen(last, "model.model_cls", MODELS, "VideoCLIP"), "model.model_cls"
    found = [_said("MODEL.MODEL_NAME", name, key, last, signs)]
    if name == "VideoCLIPFrames":
        found.append(Made("VIDEOCLIP.ATTEND_CLS", False, ("model.model_cls",)))
    if "model.layernorm_only" in last:
        train = "layer_norms" if is_on(last, "model.layernorm_only") else "all"
        found.append(Made("VIDEOCLIP.TRAIN", train, ("model.layernorm_only",)))
    return found


def _step(last: Last, testing: bool) -> list[Made]:
    """Batches, which count the videos of a GPU."""
    found, keys = [], ("fairseq.dataset.batch_size", "dataset.num_video_per_batch")
    if any(key in last for key in keys):
        count = given(last, keys[0], 1) * given(last, keys[1], 1)
        said = "" if testing else f"TRAIN.BATCH_SIZE {count}, that of one GPU: on K of them set it to K times that"
        found.append(Made(f"{'TEST' if testing else 'TRAIN'}.BATCH_SIZE", count, keys, said))
    lr = "fairseq.optimization.lr"
    if lr in last:
        rates = given(last, lr, [0.0], list[float])
        if len({*rates}) != 1:
            raise UserError(f"{last[lr].where}: {lr} {rates}: expected one rate for all epochs")
        found.append(Made("SOLVER.BASE_LR", rates[0], (lr,)))
    schedule = "fairseq.optimization.lr_scheduler"
    if schedule in last:
        found.append(Made("SOLVER.LR_POLICY", _chosen(last, schedule, {"polynomial_decay": "linear"}), (schedule,)))
    return found


def _training(last: Last, name: str, signs: list[str]) -> list[Made]:
    by = tuple(signs)
    quiet = {"TRAIN.EVAL_PERIOD": 0, "TRAIN.BEST_METRIC": "", "TRAIN.CHECKPOINT_PERIOD": 1, "TEST.ENABLE": False}
    quiet |= {"TRAIN.BATCH_SIZE_SCOPE": "global", "SOLVER.WARMUP_START_LR": 0.0, "TEST.DATASET": name}
    found = [Made(path, value, by, front=True) for path, value in quiet.items()]
    found.append(_said("TRAIN.DATASET", name, "dataset.meta_processor", last, signs))
    return found + _loss(last) + _batches(last)


def _batches(last: Last) -> list[Made]:
    keys = [key for key in RETRIEVAL if key in last]
    if _chosen(last, "task", {"VideoRetriTask": "retrieval"}) != "retrieval" and not keys:
        return []
    by = tuple(key for key in ("task", *keys) if key in last)
    found = [Made("BATCHES.NAME", "retrieval", by)]
    if "dataset.num_video_per_batch" in last:
        group = "dataset.num_video_per_batch"
        found.append(Made("BATCHES.GROUP", last[group].value, (*by, group)))
    return found + [Made(f"BATCHES.{RETRIEVAL[key]}", last[key].value, by) for key in keys]


def _loss(last: Last) -> list[Made]:
    """MMContraLoss is Norton's where one of its keys is there, else VideoCLIP's."""
    own = [key for key in NORTON if key in last]
    name = given(last, "loss.loss_cls", "MMContraLoss")
    known = {**DIRECTIONS, "CrossEntropy": ""}
    if name not in known:
        where = last["loss.loss_cls"].where
        raise UserError(f"{where}: loss.loss_cls {name} is not here: expected one of {', '.join(known)}")
    if "loss.loss_cls" not in last and not own:
        return []
    by = tuple(key for key in ("loss.loss_cls", *own) if key in last)
    if name == "CrossEntropy":
        values = {"NAME": "frame_cross_entropy"}
    elif own and name == "MMContraLoss":
        values = {"NAME": "norton", **_norton(last)}
    else:
        values = {"NAME": "infonce", "DIRECTION": DIRECTIONS[name], "COSINE": False, "TEMPERATURE": 1.0}
        values |= {"LEARN_TEMPERATURE": False, "WEIGHT": 2.0 if name == "MMContraLoss" else 1.0}
    return [Made(f"{LOSS}.{key}", value, by) for key, value in values.items()]


def _norton(last: Last) -> dict[str, object]:
    """Its keys, of which a null means none, as does a missing sequence_contrast; and the clips of a GPU."""
    found = {}
    for key in NORTON:
        if key in last:
            found[NORTON[key]] = 0.0 if plain(last[key].value) is None else last[key].value
    if _alone(last):
        found["SEQUENCE_WEIGHT"] = 0.0
    together = given(last, "dataset.num_video_per_batch", 0) * given(last, "dataset.clip_per_video", 0)
    return found | ({"CLIPS_TOGETHER": together} if together else {})


def _alone(last: Last) -> bool:
    """Whether clips are not compared as sequences: no key says so, or the last one is `sequence_contrast: null`."""
    whole = "loss.sequence_contrast"
    if whole in last and plain(last[whole].value) is not None:
        raise UserError(f"{last[whole].where}: {whole}: expected null, or its own keys below it")
    keys = [key for key in last if key.startswith(whole)]
    return not keys or keys[-1] == whole


def _evaluation(last: Last, name: str) -> list[Made]:
    """An entry of EVALS, named after its data set."""
    by = tuple(key for key in ("dataset.split", "dataset.meta_processor", "dataset.anno_path", "metric") if key in last)
    kind = _chosen(last, "metric", METRICS, "alignment" if name == "htm_align" else "retrieval")
    entry = {"NAME": kind, "DATASET": name, "SPLIT": "val" if name.startswith("youcook2") else "test"}
    entry |= {"CLIPS": 1, "CROPS": 1}
    found = [Made("TRAIN.ENABLE", False, by), Made("TEST.ENABLE", True, by)]
    found += [Made(f"{node}.DATASET", name, by) for node in ("TRAIN", "TEST")]
    return found + [Made(f"EVALS.{name}.{key}", value, by) for key, value in entry.items()]
