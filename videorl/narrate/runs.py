"""The two kinds of runs, from a config: the moments of a list, and videos from end to end."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from videorl import config
from videorl.data import narrations
from videorl.data.lists import checked_root
from videorl.data.text import tokenizer
from videorl.engine import build
from videorl.features.each import in_batches
from videorl.features.loaded import load
from videorl.features.windows import Windows, blocks_of, measure_each
from videorl.narrate import corpus, dense, parts
from videorl.narrate.captioner import Captioner
from videorl.narrate.clips import Rows, Stretches
from videorl.narrate.work import narrate, sha256
from videorl.prepare.chunks import read_sources
from videorl.prepare.record import Shard
from videorl.registry import EVALS, UserError
from videorl.spec import Views
from videorl.video.folder import EXTENSIONS


@dataclass(frozen=True)
class Run:
    """Batches of samples of `clips` for a narrator, and what writes the files when all are finished."""

    clips: object
    groups: Sequence[Sequence[int]]
    captioner: Captioner
    out: Path
    make_loader: Callable
    settings: Mapping
    finish: Callable[[Iterator[dict]], dict[str, int]]

    def fill(self, shard: Shard) -> parts.Places:
        return narrate(self.clips, self.groups, self.captioner, self.out, shard, self.make_loader, self.settings)

    def write(self, places: parts.Places) -> dict[str, int]:
        with parts.finishing(self.out):
            return self.finish(parts.rows(places))


def of_list(cfg, checkpoint: Path, out: Path, metadata: str, *, returns: int, form: str, tuples: bool) -> Run:
    """The moments of a list of narrations, in videos that node EGO4D tells of."""
    corpus.check(form)
    rows, root = narrations.read(metadata, "--metadata"), checked_root(cfg.EGO4D.ROOT, "EGO4D.ROOT")
    reading = {"seconds": cfg.EGO4D.CHUNK_SECONDS, "rule": cfg.EGO4D.FRAMES}
    clips = Rows(config.spec(cfg, Views()), rows, root, **reading)
    captioner, _ = _captioner(cfg, checkpoint, returns)
    return Run(
        clips,
        in_batches(len(rows), cfg.TEST.BATCH_SIZE),
        captioner,
        out,
        functools.partial(build.loader, cfg, title="narrate"),
        {"list": rows.fingerprint, **reading},
        functools.partial(corpus.write, out, form=form, tuples=tuples),
    )


def of_videos(cfg, checkpoint: Path, out: Path, source: Path, *, returns: int, every: float, window: float) -> Run:
    """A window of `window` seconds every `every` seconds of a video, or of each video of a folder."""
    if source.is_file() and source.suffix.lower() not in EXTENSIONS:
        raise UserError(f"{source}: expected a video or a folder of videos; for a list of narrations give --metadata")
    spec, make_loader = config.spec(cfg, Views()), functools.partial(build.loader, cfg, title="narrate")
    size = spec.clip.test_size
    windows = Windows(spec.clip.frames, window, every, "moments", size, max(spec.augment.scales[0], size))
    sources = read_sources([source], "", "", out)
    dense.check_names(sources)
    names, most = list(sources.parts), cfg.DATA.MAX_PIXELS
    found = sources.missing | measure_each(names, sources, windows, most, make_loader, "looking at videos")
    unreadable = {name: why for name, why in found.items() if isinstance(why, str)}
    counts = {name: facts for name, facts in found.items() if name not in unreadable}
    paths = {sources.file(name): name for name in counts}
    blocks = [
        block
        for path, name in paths.items()
        for block in blocks_of(sources.parts[name], path, counts[name][0], cfg.TEST.BATCH_SIZE)
    ]
    lengths = {path: counts[name][1] for path, name in paths.items()}
    captioner, protocol = _captioner(cfg, checkpoint, returns)
    notes = f"{captioner.name}, {window:g} s every {every:g} s, {protocol}"
    return Run(
        Stretches(blocks, windows, cfg.DATA.MAX_PIXELS, paths, lengths),
        in_batches(len(blocks), 1),
        captioner,
        out,
        make_loader,
        {**asdict(windows), "videos": sha256(list(counts.items()))},
        functools.partial(dense.write, out, sources=sources, unreadable=unreadable, notes=notes),
    )


def _captioner(cfg, checkpoint: Path, returns: int) -> tuple[Captioner, str]:
    """The narrator, which draws `returns` texts as the config's evaluation `captions` says, and that in words."""
    names = [name for name, node in cfg.EVALS.items() if node.NAME == "captions"]
    if not names:
        raise UserError("--cfg: expected that of a narrator, with an evaluation `captions` that says how it draws")
    entry, values = config.component(cfg, EVALS, names[0])
    values |= {"RETURNS": returns, "FACTS": "", "BERT_VOCABULARY": ""}
    drawing = entry(config.spec(cfg, Views()), values=values)
    if returns > 1 and drawing.sampling.temperature == 0 and drawing.sampling.beams == 1:
        raise UserError(
            f"--returns {returns}: EVALS.{names[0]}.TEMPERATURE 0 draws nothing, so all would be one text; set one"
        )
    kind = functools.partial(Captioner, tokenizer(config.spec(cfg).text), drawing.sampling)
    return load(cfg, checkpoint, kind), drawing.protocol.partition(": ")[2]
