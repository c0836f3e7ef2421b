"""Says what people narrated in other words: `videorl rephrase --metadata ego4d_train.pkl --model M --out DIR`.

    … --model paraphraser/ --top 3              a folder with config.json, model.safetensors and the tokenizer's files
    … --model hub:NAME                          a name on the Hugging Face hub, of which the network is asked
    … --prompt "rewrite: {}"                    what the model is told; {} stands for the text
    … --num_shards 4 --shard_id 0               the first of four processes or machines (or torchrun; all GPUs)

Any model of transformers: text to text (T5, BART), or one that chats. Of the answers of a beam search those are dropped
that repeat the text or another answer. DIR/ego4d_train.rephraser.pkl is a list for EGO4D.METADATA. The same command
again goes on where it was, also after kill -9. Exit codes: 0 done, 2 a mistake in the command or its files.
"""

import argparse
import functools
from pathlib import Path

from videorl import dist, exits, log
from videorl.cli import command
from videorl.data import narrations
from videorl.narrate.parts import finished
from videorl.narrate.rephrase import Rephraser, Rephrasing
from videorl.prepare.record import PARTS, Shard
from videorl.registry import UserError


def main(words: list[str] | None = None) -> None:
    parser = command.parser("rephrase", __doc__)
    add = parser.add_argument
    add("--metadata", required=True, metavar="LIST", type=Path, help="list of narrations, e.g. ego4d_train.pkl")
    add("--model", required=True, metavar="MODEL", help="folder, or hub:NAME")
    add("--out", required=True, metavar="DIR", type=Path, help="folder to write; new, empty or of an earlier run")
    add("--top", type=int, default=3, metavar="N", help="texts of a text (%(default)s)")
    add("--prompt", default="", metavar="TEXT", help="what the model is told (default: as its kind needs)")
    add("--batch", type=int, default=32, metavar="N", help="texts at once (%(default)s)")
    add("--num_shards", type=int, default=1, metavar="N", help="processes that share the work (%(default)s)")
    add("--shard_id", type=int, default=0, metavar="K", help="number of this one, from 0 (%(default)s)")
    args = parser.parse_args(words)
    with exits.exit_codes():
        dist.launch(functools.partial(run, args), gpus=dist.count_gpus(-1))


def run(args: argparse.Namespace) -> None:
    dist.wait_for_ever()
    log.setup(None, main=dist.is_main())
    if min(args.top, args.batch) < 1:
        raise UserError("--top and --batch: expected 1 or more")
    size = dist.world_size()
    shard = Shard(args.shard_id * size + dist.rank(), args.num_shards * size)
    rows = narrations.read(args.metadata, "--metadata")
    made = args.out / f"{args.metadata.name.removesuffix('.columns').removesuffix('.pkl')}.rephraser.pkl"
    try:
        job = Rephrasing(rows, args.batch)
        job.fill(Rephraser(args.model, args.top, args.prompt, dist.device()), args.out, shard)
        dist.barrier()
        places = finished(args.out / PARTS)  # of all ranks, the last of which has only now ended
        if dist.is_main() and len(places) < len(job.groups):
            log.say(f"{args.out}: this part is done; other shards are not yet")
        elif dist.is_main():
            done = job.write(made, places)
            log.say(f"{made}: {done['rows']} rows; {done['kept']} have no other words than their own")
    except OSError as error:  # of what it writes: no permission, disk full
        raise UserError(f"{error}; the same command goes on where it was") from None
