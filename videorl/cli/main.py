"""The command `videorl`: which sub-commands there are, and the way to them. Imports none before it is asked for."""

import argparse
import importlib
import sys

import videorl

# Sub-command: what it does. Its module is of the same name, with _ for -, and has a `main(words)`.
COMMANDS = {
    "train": "trains and tests as a config says (tools/run_net.py)",
    "fit": "trains, tests and reports on a folder of videos",
    "predict": "says what videos show, by a trained classifier",
    "demo": "makes toy videos, and trains and tests a small model on them",
    "configs": "lists the configs that come with the package",
    "check": "looks at every video of a data set and says what is wrong",
    "lists": "writes lists `path label` from published annotations",
    "prepare": "cuts videos into short chunks, which load fast",
    "extract": "writes features of the windows of many videos",
    "probe": "tells how well a simple classifier does on features",
    "search": "finds clips in a folder of videos by text",
    "narrate": "says in words what happens in many clips, by a narrator",
    "rephrase": "says what people narrated in other words",
    "reconstruct": "shows what a masked autoencoder makes of clips",
    "convert": "writes a published checkpoint as one of this toolkit",
    "flops": "counts parameters and multiply-adds of a model",
    "toy": "writes toy data sets of moving shapes",
    "index-captions": "reads the caption files of HowTo100M into one",
    "tokenize-captions": "writes captions as numbers of tokens, beside stored features",
    "align": "says when what is said in a video is to be seen, if ever",
    "convert-metadata": "writes lists of narrations as files of arrays",
}


def main(words: list[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    module = parse(words[:1]).command.replace("-", "_")
    importlib.import_module(f"videorl.cli.{module}").main(words[1:])


def parse(words: list[str]) -> argparse.Namespace:
    width = max(map(len, COMMANDS)) + 2
    listed = "\n".join(f"  {name:{width}}{what}" for name, what in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="videorl",
        usage="videorl COMMAND …",
        description=f"{videorl.__doc__}\n\n{listed}\n\n`videorl COMMAND --help` says what one takes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"videorl {videorl.__version__}")
    parser.add_argument("command", metavar="COMMAND", help="one of the above")
    args = parser.parse_args(words)
    if args.command not in COMMANDS:
        from videorl.registry import did_you_mean

        parser.error(f"there is no command {args.command}{did_you_mean(args.command, COMMANDS)}")
    return args
