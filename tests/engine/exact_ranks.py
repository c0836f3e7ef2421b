"""What the ranks of tests/engine/test_step.py run: importable, so that one spawn serves all cases."""

import copy
import math
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as td
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from videorl import config, dist, registry
from videorl.engine import optim
from videorl.engine.objective import Objective
from videorl.engine.step import Precision, backward, normalise, unwrap
from videorl.models.heads import class_head
from videorl.models.s3d import S3D
from videorl.registry import LOSSES
from videorl.spec import Clip, Head, Spec

CLIP = Clip(frames=2, rate=1, train_size=4, test_size=4)
SAMPLES, CLASSES, CANDIDATES, MASKED = 12, 5, 3, 2
TOKENS, VOCABULARY = 6, 7
PATCH = (2, 2, 2)
SPEC = Spec(CLIP, {"a": 3, "b": 4, "c": 2}, several=frozenset("c"), head=Head(hidden=6, projection=True, expander=12))
CAPTIONS = {"caption", "caption_positions"}
SEVERAL_SPACES = {"multi_head", "sparsity"}
# Losses with other keys than by default: name here, name of the loss, its keys.
VARIANTS = {
    "bce_logit_of_numbers": ("bce_logit", {}),
    "infonce_pseudo": ("infonce", {"PSEUDO_TEMPERATURE": 0.1}),
    "infonce_several": ("infonce", {"SEVERAL_POSITIVES": True}),
    "infonce_one_way": ("infonce", {"DIRECTION": "t2v", "COSINE": False, "TEMPERATURE": 1.0}),
    "caption_positions": ("caption", {"MEAN": "positions"}),
    "max_margin_adaptive": ("max_margin", {"MARGIN": 0.4, "ADAPTIVE": True}),
    "norton": ("norton", {"SEQUENCE_LENGTH": 4, "ALPHA": 0.5, "BUCKET": 0.5}),
    "norton_of_parts": ("norton", {"SEQUENCE_LENGTH": 2, "CLIPS_TOGETHER": 4, "LEARN_TEMPERATURE": True}),
}
ONE_TEXT = {"infonce", "infonce_pseudo", "infonce_one_way", "max_margin", "max_margin_adaptive", "egonce"}
ONE_TEXT |= {"norton", "norton_of_parts"}
GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from recipe import load_case  # noqa: E402


class Tiny(nn.Module):
    """Gives every name that a loss asks for. `dropout`: its rate; `norm`: batch norm; `recompute`: checkpointing;
    `spaces`: a head for each label space of SPEC; `frames`: logits of each of three frames.
    """

    def __init__(self, dropout=0.0, norm=False, recompute=False, spaces=False, frames=False):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 8))
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()
        self.words = nn.Linear(4, 8)
        self.head = class_head(SPEC if spaces else Spec(CLIP, {"": CLASSES}), 8)
        self.pixels = nn.Linear(8, MASKED * 3 * math.prod(PATCH))
        self.tokens = nn.Linear(8, 3 * 8)
        self.captions = nn.Linear(8, (TOKENS - 1) * VOCABULARY)
        self.recompute, self.frames = recompute, frames

    def forward(self, x, text):
        body = checkpoint(self.body, x, use_reentrant=False) if self.recompute else self.body(x)
        features = self.norm(body)
        candidates = self.words((text if text.ndim == 3 else text[:, None, :4]).float())
        lengths = (text >= 0).sum(-1).tolist() if text.ndim == 2 else []
        longest = max(lengths, default=TOKENS)  # a narrator leaves out what is padding in all texts
        states, head = self.tokens(features).unflatten(1, (3, 8)), self.head(features)
        if self.frames:
            head["logits"] = head["logits"][:, None] + states[..., :CLASSES]
        return {
            **head,
            "features": features,
            "video_embed": features,
            "text_embed": candidates,
            "predicted": self.pixels(features).unflatten(1, (MASKED, -1)),
            "video_tokens": states,
            "text_tokens": self.tokens(candidates[:, 0]).unflatten(1, (3, 8)),
            "token_logits": self.captions(features).unflatten(1, (TOKENS - 1, -1))[:, : longest - 1],
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


class Table(nn.Module):
    """Embeddings that are parameters themselves: a row of each for every sample."""

    def __init__(self, video, text):
        super().__init__()
        self.video, self.text = nn.Parameter(video.clone()), nn.Parameter(text.clone())

    def forward(self, index):
        return {"video_embed": self.video[index], "text_embed": self.text[index]}


class States(nn.Module):
    """Hidden states that are parameters themselves, and their means over what the masks leave."""

    def __init__(self, video, text):
        super().__init__()
        self.video, self.text = nn.Parameter(video.clone()), nn.Parameter(text.clone())

    def forward(self, index, video_token_mask, text_token_mask):
        found = {"video_tokens": self.video[index], "text_tokens": self.text[index]}
        masks = {"video": video_token_mask, "text": text_token_mask}
        pooled = {k: (found[f"{k}_tokens"] * m[..., None]).sum(1) / m.sum(1, keepdim=True) for k, m in masks.items()}
        return found | {f"{k}_embed": value for k, value in pooled.items()}


class Linears(nn.Module):
    """A linear layer for videos and one for texts."""

    def __init__(self, state):
        super().__init__()
        self.v, self.t = nn.Linear(5, 8), nn.Linear(4, 8)
        self.load_state_dict(state)

    def forward(self, x, text):
        return {"video_embed": self.v(x), "text_embed": self.t(text)}


def build_loss(name: str) -> nn.Module:
    registered, keys = VARIANTS.get(name, (name, {}))
    entry = LOSSES[registered]
    return entry(
        SPEC if name in SEVERAL_SPACES else Spec(CLIP, {"": CLASSES}, patch=PATCH),
        values={key.name: key.default for key in entry.keys.values()} | keys,
    )


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
    if loss in CAPTIONS:
        lengths = torch.arange(SAMPLES)[:, None] % (TOKENS - 1) + 2
        texts = torch.randint(VOCABULARY, (SAMPLES, TOKENS), generator=draw)
        return data("cross_entropy") | {"text": texts.where(torch.arange(TOKENS) < lengths, -1)}
    return {
        "x": torch.randn(SAMPLES, 6, generator=draw),
        "text": torch.randn(SAMPLES, CANDIDATES, 4, generator=draw)[:, : 1 if loss in ONE_TEXT else None],
        "labels": several if loss == "bce_logit" else labels,
        "index": torch.arange(SAMPLES),
        "pixels": torch.randint(256, (SAMPLES, 2, 3, 4, 4), dtype=torch.uint8, generator=draw),
        # Of 4 tokens; what is visible too does not count, so samples have 0, 1 or 2 terms.
        "visible": torch.rand(SAMPLES, 4, generator=draw).argsort(1)[:, :2].sort().values,
        "masked": torch.rand(SAMPLES, 4, generator=draw).argsort(1)[:, :MASKED].sort().values,
        "video_token_mask": torch.arange(3) < torch.randint(1, 4, (SAMPLES, 1), generator=draw),
        "text_token_mask": torch.arange(3) < torch.randint(1, 4, (SAMPLES, 1), generator=draw),
        "frame_labels": torch.randint(CLASSES, (SAMPLES, 3), generator=draw).where(
            torch.rand(SAMPLES, 3, generator=draw) < 0.7, -100
        ),
        "pseudo": torch.rand(SAMPLES, generator=draw) < 0.4,
        "relevancy": torch.rand(SAMPLES, generator=draw),
        "verbs": (torch.rand(SAMPLES, 7, generator=draw) < 0.3).float(),
        "nouns": (torch.rand(SAMPLES, 9, generator=draw) < 0.3).float(),
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
    model = Tiny(spaces=names[0] in SEVERAL_SPACES, frames=names[0] == "frame_cross_entropy", **model_options)
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


def published_gradients() -> dict[str, dict]:
    """Value and gradients of the cases that the published systems computed on one and on two ranks."""
    given = load_case(GOLDEN / "lavila/losses_2_ranks.pt")["inputs"]
    extra = {"pseudo": given["is_human"] == 0, "relevancy": given["weight"]}
    rows = {"index": torch.arange(len(given["video"])), **extra}
    names = {"clip": "infonce", "ssl": "infonce_pseudo", "max_margin": "max_margin"}
    names["adaptive_max_margin"] = "max_margin_adaptive"
    found = {key: _published(Table(given["video"], given["text"]), name, rows) for key, name in names.items()}
    case = load_case(GOLDEN / "milnce/gathered_loss_2_ranks.pt")
    size, texts = case["config"]["B"], case["config"]["K"]
    rows = {"index": torch.arange(size), "x": case["inputs"]["V"], "text": case["inputs"]["T"].view(size, texts, -1)}
    for key, factor in (("milnce", 1.0), ("milnce_gathered", 0.5)):
        found[key] = _published(Linears(case["state_dict"]), "milnce", rows, factor)
    given = load_case(GOLDEN / "norton/loss_threshold_4_alpha_half.pt")["inputs"]
    states = States(given["video_noise"] + 0.3 * given["text_outputs"].mean(1, keepdim=True), given["text_outputs"])
    masks = {f"{kind}_token_mask": given[f"{kind}_mask"] for kind in ("video", "text")}
    found["norton"] = _published(states, "norton", {"index": torch.arange(32), **masks}, chunks=4)
    return found


def _published(model: nn.Module, loss: str, rows: dict, factor: float = 1.0, chunks: int = 2) -> dict:
    """One step over all rows, in so many micro-batches, which the ranks share."""
    objective = Objective({loss: build_loss(loss)}, {loss: 1.0}, factor)
    size, own = len(rows["index"]) // chunks, chunks // dist.world_size()
    batches = [{k: v[start : start + size] for k, v in rows.items()} for start in range(0, chunks * size, size)]
    batches = batches[dist.rank() * own : (dist.rank() + 1) * own]
    model = DistributedDataParallel(model) if dist.world_size() > 1 else model
    values = backward(model, objective, batches, clip=CLIP, precision=Precision(torch.device("cpu")), seed=0, step=0)
    named = [*unwrap(model).named_parameters(), *objective.losses[loss].named_parameters()]
    return {"loss": values["loss"], "top1": values.get("top1"), **{n: p.grad for n, p in named}}


def shared_moments() -> dict[str, bool]:
    """Whether steps with SOLVER.ZERO are those without, in every bit, also when they go on from what was saved."""
    cfg = config.load(overrides=["SOLVER.OPTIMIZING_METHOD", "adamw", "SOLVER.ZERO", "True", "NUM_GPUS", "0"])
    plain = config.load(overrides=["SOLVER.OPTIMIZING_METHOD", "adamw", "NUM_GPUS", "0"])
    models, optimizers = zip(*(_trained(settings, 3) for settings in (plain, cfg)))
    saved = optim.state_of(optimizers[1])
    objects = [saved]
    td.broadcast_object_list(objects)  # each rank reads the whole file
    kept = sum(value.numel() for moments in optimizers[1].optim.state.values() for value in moments.values())
    whole = sum(value.numel() for moments in optimizers[0].state.values() for value in moments.values())
    goes_on = [_trained(settings, 2, models[0], objects[0])[0] for settings in (plain, cfg)]
    uninterrupted = _trained(plain, 5)[0]
    return {
        "three steps": _equal(*models),
        "a part is kept": 0 < kept < whole,
        "saved whole": dist.rank() > 0 or _same_state(saved, optimizers[0].state_dict()),
        "goes on with": _equal(goes_on[1], uninterrupted),
        "goes on without": _equal(goes_on[0], uninterrupted),
    }


def _trained(cfg, steps: int, start: nn.Module | None = None, saved: dict | None = None):
    """A model after so many steps with the same gradients on every rank, from the first or from a saved place."""
    torch.manual_seed(0)
    model = Tiny()
    if start is not None:
        model.load_state_dict(start.state_dict())
    optimizer = optim.build_optimizer(cfg, model, nn.Module())
    if saved is not None:
        optim.restore(optimizer, copy.deepcopy(saved))
    for step in range(3 * (saved is not None), 3 * (saved is not None) + steps):
        draw = torch.Generator().manual_seed(step)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=draw)
        optim.set_rates(optimizer, 0.01 * (step + 1), 0.1)
        optimizer.step()
    return model, optimizer


def _equal(model: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def _same_state(state: dict, other: dict) -> bool:
    moments = zip(state["state"].values(), other["state"].values(), strict=True)
    same = all(torch.equal(mine[name], theirs[name]) for mine, theirs in moments for name in theirs)
    return same and [g["names"] for g in state["param_groups"]] == [g["names"] for g in other["param_groups"]]


def cases() -> list[tuple[list[str], int, bool]]:
    registry.discover()
    # Sorted: the order of registration depends on what a process has imported. None of some project.
    own = sorted(name for name in LOSSES if LOSSES[name].build.__module__.startswith("videorl."))
    every = [
        ([name], micro, even) for name in sorted({*own, *VARIANTS}) for micro in (1, 2, 3, 4) for even in (True, False)
    ]
    together = (
        ["cross_entropy", "informative", "milnce", "infonce_several"],
        ["multi_head", "informative", "sparsity"],
    )
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
        published = published_gradients() if world == 2 else {}
        shared = shared_moments()
        td.barrier()
        td.destroy_process_group()
        dist._cpu_group = None
        if rank == 0:
            results = {"cases": found, "dropout": dropout, "narrated": narrated, "published": published}
            results["shared"] = shared
            torch.save(results, f"{folder}/world{world}.pt")


def spawn(worlds: tuple[int, ...] = (2, 3)) -> dict[int, dict]:
    """World size -> results of all cases, from one spawn of as many processes as the largest needs."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(run_rank, (folder, worlds), nprocs=max(worlds))
        return {world: torch.load(f"{folder}/world{world}.pt", weights_only=True) for world in worlds}
