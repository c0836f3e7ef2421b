"""What the ranks of tests/engine/test_step.py run: importable, so that one spawn serves all cases."""

import math
import tempfile

import torch
import torch.distributed as td
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from videorl import dist, registry
from videorl.engine.objective import Objective
from videorl.engine.step import Precision, backward, normalise, unwrap
from videorl.models.heads import class_head
from videorl.models.s3d import S3D
from videorl.registry import LOSSES
from videorl.spec import Clip, Head, Spec

CLIP = Clip(frames=2, rate=1, train_size=4, test_size=4)
SAMPLES, CLASSES, CANDIDATES, MASKED = 12, 5, 3, 2
PATCH = (2, 2, 2)
SPEC = Spec(CLIP, {"a": 3, "b": 4, "c": 2}, several=frozenset("c"), head=Head(hidden=6, projection=True, expander=12))
SEVERAL_SPACES = {"multi_head", "sparsity"}


class Tiny(nn.Module):
    """Gives every name that a loss asks for. `dropout`: its rate; `norm`: batch norm; `recompute`: checkpointing;
    `spaces`: a head for each label space of SPEC.
    """

    def __init__(self, dropout=0.0, norm=False, recompute=False, spaces=False):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 8))
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()
        self.words = nn.Linear(4, 8)
        self.head = class_head(SPEC if spaces else Spec(CLIP, {"": CLASSES}), 8)
        self.pixels = nn.Linear(8, MASKED * 3 * math.prod(PATCH))
        self.recompute = recompute

    def forward(self, x, text):
        body = checkpoint(self.body, x, use_reentrant=False) if self.recompute else self.body(x)
        features = self.norm(body)
        candidates = self.words(text)
        return {
            **self.head(features),
            "features": features,
            "video_embed": features,
            "text_embed": candidates,
            "first_text": candidates[:, 0],
            "predicted": self.pixels(features).unflatten(1, (MASKED, -1)),
        }


class Projected(nn.Module):
    """features = x W^T."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight.clone())

    def forward(self, x):
        return {"features": x @ self.weight.T}


class Narrated(nn.Module):
    """S3D in float64, where no ReLU falls the other way because other clips are in its batch."""

    def __init__(self, clip):
        super().__init__()
        self.s3d = S3D(Spec(clip), embed_dim=8, width=0.05, vocabulary=20, freeze_words=False).double()

    def forward(self, video, text):
        return self.s3d(video.double(), text)


class FirstCandidate(nn.Module):
    """InfoNCE sees one text a clip, MIL-NCE several: this renames for the former."""

    def __init__(self, loss):
        super().__init__()
        self.loss, self.coupled = loss, loss.coupled

    def forward(self, video_embed, first_text):
        return self.loss(video_embed, first_text)


def build_loss(name: str) -> nn.Module:
    entry = LOSSES[name]
    loss = entry(
        SPEC if name in SEVERAL_SPACES else Spec(CLIP, {"": CLASSES}, patch=PATCH),
        values={key.name: key.default for key in entry.keys.values()},
    )
    return FirstCandidate(loss) if name == "infonce" else loss


def data(loss: str) -> dict:
    draw = torch.Generator().manual_seed(3)
    labels = torch.randint(CLASSES, (SAMPLES,), generator=draw)
    several = torch.randint(2, (SAMPLES, CLASSES), generator=draw).float()
    if loss in SEVERAL_SPACES:
        spaces = torch.rand(SAMPLES, 3, generator=draw).softmax(1)
        shares = [
            spaces[:, d : d + 1] * torch.rand(SAMPLES, c, generator=draw).softmax(1) for d, c in enumerate((3, 4, 2))
        ]
        return data("cross_entropy") | {"labels": torch.cat(shares, 1), "spaces": spaces}
    return {
        "x": torch.randn(SAMPLES, 6, generator=draw),
        "text": torch.randn(SAMPLES, CANDIDATES, 4, generator=draw),
        "labels": several if loss.startswith("bce") else labels,
        "index": torch.arange(SAMPLES),
        "pixels": torch.randint(256, (SAMPLES, 2, 3, 4, 4), dtype=torch.uint8, generator=draw),
        # Of 4 tokens; what is visible too does not count, so samples have 0, 1 or 2 terms.
        "visible": torch.rand(SAMPLES, 4, generator=draw).argsort(1)[:, :2].sort().values,
        "masked": torch.rand(SAMPLES, 4, generator=draw).argsort(1)[:, :MASKED].sort().values,
    }


def parts(total: int, even: bool) -> list[int]:
    """Sizes of `total` chunks of the samples: equal, or as uneven as can be told apart."""
    sizes = [SAMPLES // total] * total
    if not even and total > 1:
        sizes[0], sizes[-1] = sizes[0] - 1, sizes[-1] + 1
    sizes[-1] += SAMPLES - sum(sizes)
    return sizes


def gradient(names: list[str], micro_batches: int, even: bool, *, dtype=None, seed=7, **model_options) -> dict:
    """Gradients and values of one step of the losses `names`, for this rank's share of the samples."""
    torch.manual_seed(0)
    model = Tiny(spaces=names[0] in SEVERAL_SPACES, **model_options)
    objective = Objective({n: build_loss(n) for n in names}, {n: 0.5 + k for k, n in enumerate(names)})
    if dist.world_size() > 1:
        model = DistributedDataParallel(model, broadcast_buffers=False)
    chunks = [
        dict(zip(data(names[0]), values))
        for values in zip(*(v.split(parts(dist.world_size() * micro_batches, even)) for v in data(names[0]).values()))
    ]
    mine = chunks[dist.rank() * micro_batches : (dist.rank() + 1) * micro_batches]
    precision = Precision(torch.device("cpu"), dtype)
    values = backward(model, objective, mine, clip=CLIP, precision=precision, seed=seed, step=1)
    named = [*unwrap(model).named_parameters(), *((f"loss.{n}", p) for n, p in objective.named_parameters())]
    found = {n: p.grad.clone() for n, p in named if p.grad is not None}
    statistics = {n: b.clone() for n, b in unwrap(model).named_buffers()}
    return {"gradient": found, "values": values, "statistics": statistics}


def narrated_gradient(micro_batches: int) -> dict:
    """Gradients and values of one step of S3D and word2vec with MIL-NCE, for this rank's share of 12 clips.

    Batch norms use the statistics of all clips: those of training are each micro-batch's own.
    """
    torch.manual_seed(0)
    clip = Clip(frames=4, rate=1, train_size=32, test_size=32)
    model = Narrated(clip)
    draw = torch.Generator().manual_seed(4)
    batch = {
        "video": torch.randint(256, (SAMPLES, 4, 3, 32, 32), generator=draw, dtype=torch.uint8),
        "text": torch.randint(20, (SAMPLES, CANDIDATES, 5), generator=draw),
        "index": torch.arange(SAMPLES),
    }
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm3d)]
    for norm in norms:
        norm.momentum = 1.0
    model(normalise(batch["video"], clip), batch["text"])
    for norm in norms:
        norm.eval()
    objective = Objective({"milnce": build_loss("milnce")}, {"milnce": 1.0})
    model = DistributedDataParallel(model, broadcast_buffers=False) if dist.world_size() > 1 else model
    size = SAMPLES // dist.world_size() // micro_batches
    chunks = [dict(zip(batch, values)) for values in zip(*(v.split(size) for v in batch.values()))]
    mine = chunks[dist.rank() * micro_batches : (dist.rank() + 1) * micro_batches]
    values = backward(model, objective, mine, clip=clip, precision=Precision(torch.device("cpu")), seed=0, step=0)
    return {"gradient": {n: p.grad for n, p in unwrap(model).named_parameters()}, "values": values}


def cases() -> list[tuple[list[str], int, bool]]:
    registry.discover()
    # Sorted: the order of registration depends on what a process has imported. None of some project.
    own = sorted(name for name in LOSSES if LOSSES[name].build.__module__.startswith("videorl."))
    every = [([name], micro, even) for name in own for micro in (1, 2, 3, 4) for even in (True, False)]
    together = (["cross_entropy", "informative", "milnce", "infonce"], ["multi_head", "informative", "sparsity"])
    mixed = [(names, micro, False) for names in together for micro in (1, 2, 3)]
    return every + mixed


def run_rank(rank: int, folder: str, worlds: tuple[int, ...]) -> None:
    """All cases for each world size that this rank belongs to; rank 0 saves what it found."""
    for world in worlds:
        if rank >= world:
            continue
        td.init_process_group("gloo", store=td.FileStore(f"{folder}/store{world}", world), rank=rank, world_size=world)
        dist._cpu_group = td.group.WORLD
        found = [gradient(*case) for case in cases()]
        dropout = gradient(["cross_entropy", "milnce"], 6 // world, True, dropout=0.4)
        narrated = narrated_gradient(2)
        td.barrier()
        td.destroy_process_group()
        dist._cpu_group = None
        if rank == 0:
            torch.save({"cases": found, "dropout": dropout, "narrated": narrated}, f"{folder}/world{world}.pt")


def spawn(worlds: tuple[int, ...] = (2, 3)) -> dict[int, dict]:
    """World size -> results of all cases, from one spawn of as many processes as the largest needs."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(run_rank, (folder, worlds), nprocs=max(worlds))
        return {world: torch.load(f"{folder}/world{world}.pt", weights_only=True) for world in worlds}
