"""Keys of facebookresearch/SlowFast (slowfast/config/defaults.py) that videorl does not have under that name."""

from videorl.dialect.rules import Combined, Ignored, Last, Made, Renamed, Rule, Unsupported, Values, given, is_on, rows

# Published model -> the registered one; None: not in this version. PyTorchVideo's MViT is the same network.
MODELS: dict[str, str | None] = {"PTVMViT": "MViT"} | dict.fromkeys(
    [
        "SlowFast",
        "ResNet",
        "X3D",
        "ContrastiveModel",
        "PTVSlowFast",
        "PTVResNet",
        "PTVX3D",
        "PTVCSN",
        "PTVR2plus1D",
    ]
)

CONVOLUTIONAL = ("2d", "c2d", "c2d_nopool", "i3d", "i3d_nopool", "slow", "slowfast", "x3d")  # values of MODEL.ARCH

NOT_INFLATED = "weights are taken by name and shape; those of image models are not inflated"
NOT_READ = "PySlowFast does not read it for videos"
OTHER_MODEL = "no model of this version reads it"
OFF = (False,)
ONLY_MAE = "of the masked pre-trainings only that of MAE is here (k400_VIT_B_16x4_MAE_PT.yaml and its like)"

RULES: dict[str, Rule] = {
    # Values that have other names here
    "DATA.DECODING_BACKEND": Values({"torchvision": "pyav", "auto": "pyav"}),
    "AUG.COLOR_JITTER": Values({None: 0.0}),
    "SOLVER.CLIP_GRAD_VAL": Values({None: 0.0}),
    "SOLVER.CLIP_GRAD_L2NORM": Values({None: 0.0}),
    "MODEL.LOSS_FUNC": Values({"multi_mse": "masked_pixels"}),
    "SOLVER.OPTIMIZING_METHOD": Values({"mt_adamw": "adamw", "zero_sgd": "sgd", "zero_adamw": "adamw"}),
    # Training
    "TASK": Ignored("MODEL and LOSSES say what is trained; checkpoints bear no prefix"),
    "TRAIN.CHECKPOINT_IN_INIT": Ignored(NOT_INFLATED),
    "TRAIN.CHECKPOINT_INFLATE": Unsupported(NOT_INFLATED, OFF, refused=True),
    "TRAIN.CHECKPOINT_TYPE": Unsupported("only files of PyTorch are read", ("pytorch",), refused=True),
    "TEST.CHECKPOINT_TYPE": Unsupported("only files of PyTorch are read", ("pytorch",), refused=True),
    "TRAIN.KILL_LOSS_EXPLOSION_FACTOR": Unsupported(
        "a rising loss does not end the run; one that is not finite does, see TRAIN.NONFINITE", (0.0,)
    ),
    # Testing
    "TEST.SAVE_RESULTS_PATH": Ignored("scores of every evaluation are in OUTPUT_DIR/predictions"),
    "TEST.NUM_TEMPORAL_CLIPS": Combined("TEST.NUM_ENSEMBLE_VIEWS and an entry of EVALS for each further number"),
    # Data
    "DATA.REVERSE_INPUT_CHANNEL": Ignored("videos are read as RGB, which is what the key made of OpenCV's BGR frames"),
    "DATA.DECODING_SHORT_SIZE": Ignored("frames are decoded as they are and resized once"),
    "AUG.RE_SPLIT": Ignored(NOT_READ),
    **rows("DATA", "TRAIN_PCA_EIGVAL TRAIN_PCA_EIGVEC", Ignored("color jitter by PCA is for images and AVA")),
    **rows(
        "DATA", "PATH_TO_PRELOAD_IMDB IN22K_TRAINVAL IN22k_VAL_IN1K IN_VAL_CROP_RATIO", Ignored("it is for ImageNet")
    ),
    **rows("DATA", "LOADER_CHUNK_SIZE LOADER_CHUNK_OVERALL_SIZE", Ignored("a csv is read once, as a compact table")),
    "DATA.SKIP_ROWS": Unsupported("every line of train.csv is read", (0,), refused=True),
    "DATA.DUMMY_LOAD": Unsupported("videos are always read", OFF, refused=True),
    "DATA.TRAIN_CROP_NUM_SPATIAL": Unsupported("for more crops of a clip see AUG.NUM_SAMPLE", (1,), refused=True),
    **rows(
        "DATA",
        "TRAIN_JITTER_MOTION_SHIFT SSL_COLOR_JITTER SSL_MOCOV2_AUG",
        Unsupported("this augmentation is not here", OFF, refused=True),
    ),
    **rows(
        "DATA",
        "TRAIN_JITTER_FPS COLOR_RND_GRAYSCALE TIME_DIFF_PROB",
        Unsupported("this augmentation is not here", (0.0,), refused=True),
    ),
    **rows(
        "DATA",
        "SSL_COLOR_BRI_CON_SAT SSL_COLOR_HUE SSL_BLUR_SIGMA_MIN SSL_BLUR_SIGMA_MAX",
        Ignored("read with SSL_COLOR_JITTER or SSL_MOCOV2_AUG alone"),
    ),
    "DATA_LOADER.ENABLE_MULTI_THREAD_DECODE": Ignored("see DATA_LOADER.NUM_WORKERS"),
    "PREFETCH.NUM_LOADERS": Ignored("see DATA_LOADER.PREFETCH"),
    # Models
    "MODEL.ARCH": Ignored("MODEL_NAME alone picks the model"),
    **rows("MODEL", "SINGLE_PATHWAY_ARCH MULTI_PATHWAY_ARCH", Ignored("MODEL_NAME alone picks the model")),
    "MODEL.FC_INIT_STD": Ignored("it is for convolutional models"),
    "MODEL.DROPCONNECT_RATE": Unsupported("it is for convolutional models", (0.0,)),
    "MODEL.DETACH_FINAL_FC": Unsupported("the whole model is trained", OFF, refused=True),
    "MODEL.FROZEN_BN": Unsupported("the whole model is trained", OFF, refused=True),
    "MODEL.FP16_ALLREDUCE": Unsupported("gradients are averaged in their own precision", OFF),
    **rows("BN", "USE_PRECISE_STATS NUM_BATCHES_PRECISE", Ignored("batch-norm statistics are those of training")),
    "BN.NORM_TYPE": Unsupported("batch norm is each process's own", ("batchnorm",), refused=True),
    **rows("BN", "NUM_SPLITS NUM_SYNC_DEVICES GLOBAL_SYNC", Ignored("read with other values of BN.NORM_TYPE alone")),
    "MVIT.PATCH_2D": Unsupported("MViT is for videos", OFF, refused=True),
    "MVIT.POOL_KV_STRIDE": Unsupported("set POOL_KV_STRIDE_ADAPTIVE", ([], None), refused=True),
    "MVIT.NORM_STEM": Unsupported("tokens are not normalised before the first block", OFF, refused=True),
    "MVIT.SEPARATE_QKV": Ignored("it changes no output; queries, keys and values of such files are put together"),
    "MVIT.REL_POS_ZERO_INIT": Unsupported("relative positions begin with normal numbers", OFF, refused=True),
    "MVIT.REV.ENABLE": Unsupported("blocks are not reversible", OFF, refused=True),
    **rows("MVIT.REV", "RESPATH_FUSE BUFFER_LAYERS RES_PATH PRE_Q_FUSION", Ignored("read with MVIT.REV.ENABLE alone")),
    # Optimizer
    **rows("SOLVER", "GAMMA STEP_SIZE WARMUP_FACTOR", Ignored("no learning-rate policy reads it")),
    "SOLVER.LARS_ON": Unsupported("the optimizer is not wrapped in LARS", OFF, refused=True),
    # Masked pre-training
    "AUG.GEN_MASK_LOADER": Unsupported(ONLY_MAE, OFF, refused=True),
    "AUG.MASK_RATIO": Renamed(("MASK.RATIO",), needs="MASK.ENABLE"),
    **rows(
        "AUG",
        "MASK_TUBE MASK_FRAMES MASK_WINDOW_SIZE MAX_MASK_PATCHES_PER_BLOCK",
        Ignored("read with GEN_MASK_LOADER alone"),
    ),
    "MASK.ENABLE": Combined("MASK.KIND random, MASK.TARGET frame and MODEL.PATCH_SIZE, if it is on"),
    **rows("MASK", "MAE_ON MAE_RND_MASK TIME_STRIDE_LOSS", Unsupported(ONLY_MAE, (True,), True, needs="MASK.ENABLE")),
    **rows("MASK", "PER_FRAME_MASKING PRED_HOG", Unsupported(ONLY_MAE, OFF, True, needs="MASK.ENABLE")),
    "MASK.HEAD_TYPE": Unsupported(ONLY_MAE, ("separate_xformer",), True, needs="MASK.ENABLE"),
    "MASK.PRETRAIN_DEPTH": Ignored("what the last block gives is decoded", needs="MASK.ENABLE"),
    "MASK.NORM_PRED_PIXEL": Renamed(("MASK.NORMALISE",), needs="MASK.ENABLE"),
    "MASK.DECODER_EMBED_DIM": Renamed(("MVIT.DECODER_EMBED_DIM",), needs="MASK.ENABLE"),
    "MASK.DECODER_DEPTH": Renamed(("MVIT.DECODER_DEPTH",), needs="MASK.ENABLE"),
    "MASK.DECODER_SEP_POS_EMBED": Unsupported("the decoder has one table", OFF, True, needs="MASK.ENABLE"),
    "MASK.SCALE_INIT_BY_DEPTH": Unsupported("initial weights depend on no depth", OFF, True, needs="MASK.ENABLE"),
    **rows("MASK", "DEC_KV_KERNEL DEC_KV_STRIDE", Ignored("it is for decoders that pool", needs="MASK.ENABLE")),
    "VIS_MASK.ENABLE": Unsupported("`videorl reconstruct` makes pictures of masked clips", OFF),
    # Convolutional and contrastive models
    **rows(
        "RESNET",
        "TRANS_FUNC NUM_GROUPS WIDTH_PER_GROUP INPLACE_RELU STRIDE_1X1 ZERO_INIT_FINAL_BN ZERO_INIT_FINAL_CONV DEPTH"
        " NUM_BLOCK_TEMP_KERNEL SPATIAL_STRIDES SPATIAL_DILATIONS",
        Unsupported(OTHER_MODEL),
    ),
    **rows(
        "X3D",
        "WIDTH_FACTOR DEPTH_FACTOR BOTTLENECK_FACTOR DIM_C5 DIM_C1 SCALE_RES2 BN_LIN5 CHANNELWISE_3x3x3",
        Unsupported(OTHER_MODEL),
    ),
    **rows("NONLOCAL", "LOCATION GROUP INSTANTIATION POOL", Unsupported(OTHER_MODEL)),
    **rows("SLOWFAST", "BETA_INV ALPHA FUSION_CONV_CHANNEL_RATIO FUSION_KERNEL_SZ", Unsupported(OTHER_MODEL)),
    **rows(
        "CONTRASTIVE",
        "T DIM LENGTH QUEUE_LEN MOMENTUM MOMENTUM_ANNEALING TYPE INTERP_MEMORY MEM_TYPE NUM_CLASSES_DOWNSTREAM"
        " NUM_MLP_LAYERS MLP_DIM BN_MLP BN_SYNC_MLP LOCAL_SHUFFLE_BN MOCO_MULTI_VIEW_QUEUE DELTA_CLIPS_MIN"
        " DELTA_CLIPS_MAX PREDICTOR_DEPTHS SEQUENTIAL SIMCLR_DIST_ON SWAV_QEUE_LEN KNN_ON",
        Unsupported(OTHER_MODEL),
    ),
    # Detection
    "DETECTION.ENABLE": Unsupported("videos are classified, people in them are not detected", OFF, refused=True),
    **rows(
        "DETECTION", "ALIGNED SPATIAL_SCALE_FACTOR ROI_XFORM_RESOLUTION", Ignored("read with DETECTION.ENABLE alone")
    ),
    **rows(
        "AVA",
        "FRAME_DIR FRAME_LIST_DIR ANNOTATION_DIR TRAIN_LISTS TEST_LISTS TRAIN_GT_BOX_LISTS TRAIN_PREDICT_BOX_LISTS"
        " TEST_PREDICT_BOX_LISTS DETECTION_SCORE_THRESH BGR TRAIN_USE_COLOR_AUGMENTATION TRAIN_PCA_JITTER_ONLY"
        " TRAIN_PCA_EIGVAL TRAIN_PCA_EIGVEC TEST_FORCE_FLIP FULL_TEST_ON_VAL LABEL_MAP_FILE EXCLUSION_FILE"
        " GROUNDTRUTH_FILE IMG_PROC_BACKEND",
        Ignored("the data set AVA is not in this version"),
    ),
    # Multigrid
    **rows("MULTIGRID", "SHORT_CYCLE LONG_CYCLE", Unsupported("clips keep their shape", OFF, refused=True)),
    **rows(
        "MULTIGRID",
        "EPOCH_FACTOR SHORT_CYCLE_FACTORS LONG_CYCLE_FACTORS BN_BASE_SIZE EVAL_FREQ LONG_CYCLE_SAMPLING_RATE DEFAULT_B"
        " DEFAULT_T DEFAULT_S",
        Ignored("read with SHORT_CYCLE or LONG_CYCLE alone"),
    ),
    # Pictures, demo, benchmark
    "TENSORBOARD.CONFUSION_MATRIX.ENABLE": Ignored("written whenever TENSORBOARD.ENABLE is on"),
    **rows("TENSORBOARD", "CLASS_NAMES_PATH", Ignored("see DATA.CLASS_NAMES")),
    **rows("TENSORBOARD", "PREDICTIONS_PATH CATEGORIES_PATH", Ignored("pictures are made of this run's own results")),
    **rows("TENSORBOARD.CONFUSION_MATRIX", "FIGSIZE SUBSET_PATH", Ignored("all classes are drawn")),
    "TENSORBOARD.HISTOGRAM.ENABLE": Unsupported("no histograms of predictions are made", OFF),
    **rows("TENSORBOARD.HISTOGRAM", "SUBSET_PATH TOPK FIGSIZE", Ignored("read with HISTOGRAM.ENABLE alone")),
    "TENSORBOARD.MODEL_VIS.ENABLE": Unsupported("no pictures of weights and activations are made", OFF),
    **rows(
        "TENSORBOARD.MODEL_VIS",
        "MODEL_WEIGHTS ACTIVATIONS INPUT_VIDEO LAYER_LIST TOPK_PREDS COLORMAP GRAD_CAM.ENABLE GRAD_CAM.LAYER_LIST"
        " GRAD_CAM.USE_TRUE_LABEL GRAD_CAM.COLORMAP",
        Ignored("read with MODEL_VIS.ENABLE alone"),
    ),
    "TENSORBOARD.WRONG_PRED_VIS.ENABLE": Unsupported(
        "TensorBoard gets no wrongly classified videos; see the report", OFF
    ),
    **rows("TENSORBOARD.WRONG_PRED_VIS", "TAG SUBSET_PATH", Ignored("read with WRONG_PRED_VIS.ENABLE alone")),
    "DEMO.ENABLE": Unsupported("the run ends after the test", OFF),
    **rows(
        "DEMO",
        "LABEL_FILE_PATH WEBCAM INPUT_VIDEO DISPLAY_WIDTH DISPLAY_HEIGHT DETECTRON2_CFG DETECTRON2_WEIGHTS"
        " DETECTRON2_THRESH BUFFER_SIZE OUTPUT_FILE OUTPUT_FPS INPUT_FORMAT CLIP_VIS_SIZE NUM_VIS_INSTANCES PREDS_BOXES"
        " THREAD_ENABLE NUM_CLIPS_SKIP GT_BOXES STARTING_SECOND FPS VIS_MODE COMMON_CLASS_THRES"
        " UNCOMMON_CLASS_THRES COMMON_CLASS_NAMES SLOWMO",
        Ignored("read with DEMO.ENABLE alone"),
    ),
    **rows("BENCHMARK", "NUM_EPOCHS LOG_PERIOD SHUFFLE", Ignored("tools/bench/data.py measures the loader")),
}


def made(last: Last) -> list[Made]:
    """Settings that follow from several published ones."""
    return _tests(last) + _masks(last) + _shared(last)


def _shared(last: Last) -> list[Made]:
    """zero_sgd, zero_adamw: moments that the processes share."""
    name = "SOLVER.OPTIMIZING_METHOD"
    zero = name in last and str(last[name].value).startswith("zero_")
    return [Made("SOLVER.ZERO", True, (name,))] * zero


def _masks(last: Last) -> list[Made]:
    """What PySlowFast's masked autoencoder always does, in keys that leave it open here."""
    switch, kernel = "MASK.ENABLE", "MVIT.PATCH_KERNEL"
    if not is_on(last, switch):
        return []
    patch = [Made("MODEL.PATCH_SIZE", last[kernel].value, (kernel,))] if kernel in last else []
    return [Made("MASK.KIND", "random", (switch,)), Made("MASK.TARGET", "frame", (switch,)), *patch]


def _tests(last: Last) -> list[Made]:
    """NUM_TEMPORAL_CLIPS [5, 7, 10]: a test with each number of clips."""
    name = "TEST.NUM_TEMPORAL_CLIPS"
    numbers = given(last, name, [], list[int])
    found = [Made("TEST.NUM_ENSEMBLE_VIEWS", clips, (name,)) for clips in numbers[:1]]
    for clips in numbers[1:]:
        entry = {
            "NAME": "views",
            "DATASET": given(last, "TEST.DATASET", "kinetics"),
            "SPLIT": "test",
            "CLIPS": clips,
            "CROPS": given(last, "TEST.NUM_SPATIAL_CROPS", 3),
        }
        found += [Made(f"EVALS.test_{clips}_clips.{key}", value, (name,)) for key, value in entry.items()]
    return found
