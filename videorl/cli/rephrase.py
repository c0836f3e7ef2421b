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
from videorl.engine import determinism
from videorl.narrate.parts import share
from videorl.narrate.rephrase import Rephraser, Rephrasing
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
    log.setup(None, main=dist.is_main())
    if min(args.top, args.batch) < 1:
        raise UserError("--top and --batch: expected 1 or more")
    determinism.set_level("data")  # the default of DETERMINISM, for there is no config
    rows = narrations.read(args.metadata, "--metadata")
    made = args.out / f"{args.metadata.name.removesuffix('.columns').removesuffix('.pkl')}.rephraser.pkl"
    load = functools.partial(Rephraser, args.model, args.top, args.prompt, dist.device())
    if done := share(lambda: Rephrasing(rows, args.batch, load, made), args.out, args.shard_id, args.num_shards):
        log.say(f"{made}: {done['rows']} rows; {done['kept']} have no other words than their own")
