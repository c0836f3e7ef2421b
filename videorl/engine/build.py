"""Components of a run, built from the config tree through the registries."""

import hashlib
import logging
import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from videorl import config, dist
from videorl.clip.mixup import Mixer
from videorl.data.joint import Joint
from videorl.engine import run
from videorl.engine.objective import Objective
from videorl.engine.step import Precision
from videorl.loading.batches import Plan
from videorl.loading.pool import Loader, Workers
from videorl.loading.quarantine import Quarantine
from videorl.loading.worker import Job, Jobs
from videorl.registry import BATCHES, DATASETS, LOSSES, MODELS, UserError
from videorl.spec import Augment, Spec, Views

log = logging.getLogger("videorl")


def model(cfg) -> nn.Module:
    """The model with its first weights, which depend on RNG_SEED alone, on this process's device."""
    torch.manual_seed(cfg.RNG_SEED)
    entry, values = config.component(cfg, MODELS, cfg.MODEL.MODEL_NAME)
    built = entry(config.spec(cfg), values=values).to(dist.device())
    if cfg.MODEL.FREEZE:
        freeze(built)
    counts = [sum(p.numel() for p in built.parameters() if p.requires_grad or frozen) for frozen in (True, False)]
    trained = f", {counts[1] / 1e6:.3f} M trained" if counts[1] < counts[0] else ""
    log.info("model %s: %.3f M parameters (%d)%s", entry.name, counts[0] / 1e6, counts[0], trained)
    return built


def freeze(model: nn.Module) -> None:
    """Leaves only the classifier `head` to be trained; all before it stays in evaluation, with its statistics."""
    if not hasattr(model, "head"):
        raise UserError(f"MODEL.FREEZE: {type(model).__name__} has no classifier to train; set it to False")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head."))
    model.register_forward_pre_hook(_rest_in_evaluation)


def _rest_in_evaluation(model: nn.Module, inputs: tuple) -> None:
    for name, part in model.named_children():
        if name != "head":
            part.eval()


def parallel(cfg, built: nn.Module) -> nn.Module:
    """The model ready to train: compiled and, with several processes, wrapped for gradient averaging."""
    if cfg.TRAIN.COMPILE:
        built = torch.compile(built)
    if dist.world_size() == 1:
        return built
    # torch 2.15 announces another name for broadcast_buffers, which 2.10 does not have.
    warnings.filterwarnings("ignore", ".*broadcast_buffers.*", FutureWarning)
    # Statistics of batch norm are each rank's own while training; rank 0's are saved.
    return DistributedDataParallel(built, broadcast_buffers=False, gradient_as_bucket_view=True)


def objective(cfg) -> Objective:
    """The losses of node LOSSES."""
    losses, weights = {}, {}
    for name, node in cfg.LOSSES.items():
        entry, values = config.component(cfg, LOSSES, name)
        losses[name], weights[name] = entry(config.spec(cfg), values=values), node.WEIGHT
    factor = 1 / dist.world_size() if cfg.MULTI.PAPER_QUIRKS else 1.0
    made = Objective(losses, weights, factor).to(dist.device())
    for key, output in (("PROJECTION", "projected"), ("EXPANDER", "expanded")):
        if cfg.MULTI[key] and not any(output in needs for needs in made.needs.values()):
            raise UserError(f"MULTI.{key} is on, but no loss of LOSSES uses it ({', '.join(losses)}): turn it off")
    return made


def precision(cfg) -> Precision:
    """What TRAIN.MIXED_PRECISION and TRAIN.AMP_DTYPE mean on this device."""
    device = dist.device()
    if not cfg.TRAIN.MIXED_PRECISION:
        return Precision(device)
    kinds = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    kind = cfg.TRAIN.AMP_DTYPE
    if kind == "auto" and device.type == "cpu" and not _has_amx():
        log.info("TRAIN.AMP_DTYPE auto: float32, for this CPU has no AMX (bfloat16 can be asked for by name)")
        return Precision(device)
    if kind == "auto":
        kind = "bfloat16" if device.type == "cpu" or torch.cuda.is_bf16_supported() else "float16"
    if kind not in kinds:
        raise UserError(f"TRAIN.AMP_DTYPE {kind!r}: expected auto, float16 or bfloat16")
    if kind == "float16" and device.type == "cpu":
        raise UserError("TRAIN.AMP_DTYPE float16 needs a GPU; on the CPU use bfloat16 or auto")
    return Precision(device, kinds[kind])


def _has_amx() -> bool:
    # Not public in torch 2.10 to 2.15.
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


def dataset(cfg, name: str, split: str, views: Views | None = None, machine: int = 0):
    """The data set `name`: a registered one, an entry of DATASETS, or all of these as one.

    `machine`: the number of the one whose own samples these are; each draws its own random numbers.
    """
    if name == config.ALL:
        parts = {n: dataset(cfg, n, split, views, machine) for n in cfg.DATASETS}
        return Joint(_spec(cfg, machine, views), parts, {n: node.REPLICAS for n, node in cfg.DATASETS.items()})
    entry, values = config.component(cfg, DATASETS, name)
    try:
        data = entry(_spec(cfg, machine, views, name), split, values=values)
        if cfg.DATA.RESIZE_ON_DEVICE == "always" and views is None and not hasattr(data, "transform"):
            raise UserError("DATA.RESIZE_ON_DEVICE always: the workers make the clips of this data set; set it to auto")
        return data
    except UserError as error:
        if name not in cfg.DATASETS:
            raise
        said = str(error)
        for key in entry.keys.values():
            if key.bound:
                said = said.replace(key.bound, f"DATASETS.{name}.{key.name}")
        raise UserError(f"DATASETS.{name}: {said}") from None


# Keys of data sets for a list `path label` of our own.
OUR_LIST = {"ROOT": "", "SEPARATOR": " ", "CLASS_NAMES": "", "MULTI_LABEL": False, "VAL_SKIP": 1}


def dataset_of_files(cfg, name: str, files: Sequence[str], views: Views, **keys):
    """The clips that the data set `name` would show of files that no list names, all of label 0.

    `keys`: some of its own with other values. Raises `UserError` where it is none of lists.
    """
    entry, values = config.component(cfg, DATASETS, name)
    if not {"ANNOTATIONS", "ROOT"} <= values.keys():
        raise UserError(f"{name} reads no list of files: expected a data set such as kinetics or video_list")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test.csv").write_text("".join(f"{k} 0\n" for k in range(len(files))))
        ours = {**OUR_LIST, "ANNOTATIONS": folder, **keys}
        values |= {key: ours[key] for key in ours.keys() & values.keys()}
        data = entry(config.spec(cfg, views, name), "test", values=values)
    data.records = data.records.named([os.fsencode(file) for file in files])
    return data


def _spec(cfg, machine: int, views: Views | None = None, space: str = "") -> Spec:
    spec = config.spec(cfg, views, space)
    # Evaluations, which have views, take few clips and slice their batches: the workers resize for them.
    on_device = resizes_on_device(cfg.DATA.RESIZE_ON_DEVICE, spec.augment) and views is None
    return replace(spec, augment=replace(spec.augment, on_device=on_device), seed=seed_of(cfg.RNG_SEED, machine))


def resizes_on_device(wanted: str, augment: Augment) -> bool:
    """What DATA.RESIZE_ON_DEVICE means for this recipe. Raises `UserError` for `always` where that cannot be."""
    changes = {"AA_TYPE": augment.rand_augment, "COLOR_JITTER": augment.color_jitter, "RE_PROB": augment.erase_prob}
    on = [f"AUG.{key} {value}" for key, value in changes.items() if value]
    if wanted == "always" and on:
        raise UserError(
            f"DATA.RESIZE_ON_DEVICE always: expected clips that are cropped and mirrored alone, found {', '.join(on)},"
            " which the workers do; set it to auto or never, or these to nothing"
        )
    return wanted == "always" or (wanted == "auto" and not on and dist.device().type == "cuda")


def seed_of(seed: int, machine: int) -> int:
    """The seed of a machine that has samples of its own: sample 3 of one must not be drawn like sample 3 of another."""
    if machine == 0:
        return seed
    return int(np.random.SeedSequence(seed, spawn_key=(machine,)).generate_state(1, np.uint64)[0] >> 1)


def loader(cfg, data, title: str, mix=None) -> Loader:
    """Batches of `data`, by worker processes; on a CPU these get cores of their own."""
    node = cfg.DATA_LOADER
    on_gpu = dist.device().type == "cuda"
    if not on_gpu:
        leave_cores(node.NUM_WORKERS)
    workers = Workers(node.NUM_WORKERS, node.PREFETCH, node.TIMEOUT, node.PIN_MEMORY and on_gpu, node.MP_CONTEXT)
    quarantine = Quarantine(title, len(data), cfg.DATA.MAX_BAD_FRACTION, getattr(data, "sizes", None))
    return Loader(data, workers, quarantine, mix)


def leave_cores(workers: int) -> None:
    """Threads of torch wait for each other many times a step, and long where workers hold the cores of some: toy/lavila
    on 2 cores took 1.8 times as long with 2 threads beside its 2 workers as with one. OMP_NUM_THREADS goes first."""
    cores = len(os.sched_getaffinity(0))
    threads = max(1, cores // dist.local_size() - workers)
    if workers and "OMP_NUM_THREADS" not in os.environ and threads < torch.get_num_threads():
        log.info(
            "%d cores: %d thread(s) of torch beside %d loader workers; OMP_NUM_THREADS sets another number, which a"
            " model that is slower than its loader may use",
            *(cores, threads, workers),
        )
        torch.set_num_threads(threads)


@dataclass
class TrainData:
    """The training set of this rank: `steps` optimizer steps an epoch, each of `plan.micro_batches` micro-batches.

    `machines`: size and hash of the annotations of each machine that has its own; one entry where all have the same.
    """

    dataset: object
    batches: object
    plan: Plan
    loader: Loader
    machines: list[dict]

    @property
    def steps(self) -> int:
        return self.batches.steps

    @property
    def fingerprint(self) -> str:
        """Hash of the annotations of all machines."""
        hashes = [facts["fingerprint"] for facts in self.machines]
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:16] if len(hashes) > 1 else hashes[0]

    @property
    def facts(self) -> dict:
        """What `run.json` says of it; `again`: samples of a machine that come again in an epoch, for it has too few."""
        facts = {"samples": sum(m["samples"] for m in self.machines), "fingerprint": self.fingerprint}
        facts |= run.all_classes(self.machines)
        if len(self.machines) == 1:
            return facts
        taken = self.steps * self.plan.share
        parts = [{"samples": m["samples"], "fingerprint": m["fingerprint"]} for m in self.machines]
        return facts | {"machines": [{**part, "again": max(taken - part["samples"], 0)} for part in parts]}

    @property
    def readers(self) -> slice:
        """The ranks that read the same videos as this one."""
        first = dist.rank() - self.plan.rank
        return slice(first, first + self.plan.world)

    def epoch(self, epoch: int, first: int = 0, embed=None):
        """Iterator over the steps of an epoch from step `first`: each the list of this rank's micro-batches.

        Samples of the steps before `first` are not decoded. `embed`: an `Embedder`, for batches that are chosen by
        embeddings.
        """
        self.batches.begin_epoch(epoch, embed)
        parts, before = self.plan.micro_batches, epoch * self.steps
        jobs = Jobs(
            (self.steps - first) * parts,
            lambda k: Job(epoch, before + first + k // parts, self.batches.step(first + k // parts)[k % parts]),
        )
        stream = self.loader.run(jobs)
        for _ in range(first, self.steps):
            yield [next(stream) for _ in range(parts)]


def train_data(cfg) -> TrainData:
    """The training set. All ranks call it together; with DATA.LOCAL_SHARDS they agree on the length of an epoch."""
    name, title = cfg.TRAIN.DATASET, f"{cfg.TRAIN.DATASET}/train"
    count = _machines() if cfg.DATA.LOCAL_SHARDS else 1
    machine = dist.rank() // dist.local_size() if count > 1 else 0
    data = dataset(cfg, name, "train", machine=machine)
    if name in cfg.DATASETS and len(cfg.DATASETS) > 1:
        # Its labels must reach its own head among several.
        data = Joint(_spec(cfg, machine), {name: data}, {name: 1})
    plan, machines = _plan(cfg), [run.annotations(data)]
    if count > 1:
        machines = run.agreed_machines(title, data, count)
        least = max(facts["samples"] for facts in machines)
        plan = replace(plan, rank=dist.rank() % dist.local_size(), world=dist.local_size(), machines=count, least=least)
    entry, values = config.component(cfg, BATCHES, "")
    sizes = getattr(data, "sizes", {name: len(data)})
    batches = entry(sizes, plan, seed_of(cfg.RNG_SEED, machine), values=values)
    mix = _mixer(cfg, plan) if cfg.MIXUP.ENABLE else None
    made = TrainData(data, batches, plan, loader(cfg, data, title, mix), machines)
    _log_train_data(cfg, made, sizes)
    return made


def _machines() -> int:
    """Machines of this run, each of as many processes."""
    sizes = set(dist.all_gather_objects(dist.local_size()))
    if len(sizes) > 1:
        raise UserError(
            f"DATA.LOCAL_SHARDS: expected as many processes on each machine, found {', '.join(map(str, sorted(sizes)))}"
        )
    return dist.world_size() // dist.local_size()


def _log_train_data(cfg, data: TrainData, sizes: dict[str, int]) -> None:
    plan, copies = data.plan, config.spec(cfg).augment.copies
    log.info(
        "training set %s: %s videos; micro-batch %d x %d processes x %d micro-batches = %d videos a step%s,"
        " %d steps an epoch of %d videos",
        cfg.TRAIN.DATASET,
        " + ".join(f"{name} {size}" for name, size in sizes.items()) if len(sizes) > 1 else data.facts["samples"],
        plan.micro_batch,
        dist.world_size(),
        plan.micro_batches,
        plan.step_size,
        f" ({plan.step_size * copies} clips)" if copies > 1 else "",
        data.steps,
        data.steps * plan.step_size,
    )
    for number, facts in enumerate(data.facts.get("machines", [])):
        log.info(
            "machine %d: %d videos of its own, %d come again in an epoch", number, facts["samples"], facts["again"]
        )


def _plan(cfg) -> Plan:
    """TRAIN.BATCH_SIZE divided over the processes that TRAIN.BATCH_SIZE_SCOPE names."""
    scopes = {"machine": dist.local_size(), "global": dist.world_size()}
    scope = cfg.TRAIN.BATCH_SIZE_SCOPE
    if cfg.TRAIN.BATCH_SIZE % scopes[scope]:
        raise UserError(
            f"TRAIN.BATCH_SIZE {cfg.TRAIN.BATCH_SIZE} cannot be shared by {scopes[scope]} processes"
            f" (scope {scope}); make it a multiple of {scopes[scope]}"
        )
    size = cfg.TRAIN.BATCH_SIZE // scopes[scope]
    return Plan(size, cfg.TRAIN.GRAD_ACCU_NUM_BATCH, dist.rank(), dist.world_size())


def _mixer(cfg, plan: Plan) -> Mixer:
    if cfg.MASK.RATIO:
        raise UserError(
            f"MIXUP mixes whole clips, found MASK.RATIO {cfg.MASK.RATIO}: set MIXUP.ENABLE False to pre-train;"
            " to fine-tune use MODEL.MODEL_NAME ViT and MASK.RATIO 0"
        )
    if plan.micro_batch % 2 and plan.step_size > 1:
        raise UserError(
            f"MIXUP mixes pairs, but a process gets {plan.micro_batch} videos; make TRAIN.BATCH_SIZE even per process"
        )
    node = cfg.MIXUP
    settings = {
        "mixup_alpha": node.ALPHA,
        "cutmix_alpha": node.CUTMIX_ALPHA,
        "prob": node.PROB,
        "switch_prob": node.SWITCH_PROB,
        "height": cfg.DATA.TRAIN_CROP_SIZE,
        "width": cfg.DATA.TRAIN_CROP_SIZE,
    }
    sizes = tuple(config.spec(cfg).labels.values())
    paper_classes = cfg.MODEL.NUM_CLASSES if cfg.MULTI.PAPER_QUIRKS else 0
    return Mixer(cfg.RNG_SEED, sizes, node.LABEL_SMOOTH_VALUE, settings, paper_classes)
