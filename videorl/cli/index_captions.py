"""Reads the caption files of all videos of a list into one: `videorl index-captions LIST CAPTION_ROOT OUT`.

    videorl index-captions howto100m_videos.csv captions/ howto100m.captions

HOWTO100M.CAPTION_INDEX then names OUT. A run that was killed, or ended by a disk that failed, goes on where it was when
started again; a list or folder that has changed in between is refused. OUT.json holds the SHA-256 of OUT: where OUT is
complete, the command checks it. Videos whose captions are missing or wrong are counted here, and go into quarantine
when they are trained on.
"""

import argparse
from pathlib import Path

from videorl import exits, log
from videorl.cli import command
from videorl.data import captions, columns
from videorl.data.lists import check_paths, read_list
from videorl.registry import UserError


def main(words: list[str] | None = None) -> None:
    parser = command.parser("index-captions", __doc__)
    parser.add_argument("list", metavar="LIST", help="csv with the column video_path")
    parser.add_argument("root", metavar="CAPTION_ROOT", help="folder of one csv per video: start,end,text")
    parser.add_argument("out", metavar="OUT", type=Path, help="file to write")
    args = parser.parse_args(words)
    with exits.exit_codes():
        try:
            log.say(run(args))
        except OSError as error:  # no permission, disk full, disk or network fails
            raise UserError(f"{error}; what was read is kept: run again to go on") from None


def run(args: argparse.Namespace) -> str:
    """Makes or checks the index; what to tell about it."""
    paths = [path for (path,) in read_list(args.list, ["video_path"], "LIST")]
    check_paths(paths, args.list, allow_outside=False)
    names = [captions.name_of(path) for path in paths]
    if columns.head_of(args.out).exists():
        captions.verify(args.out, names, args.root)
        done = "checked"
    else:
        captions.build_index(names, args.root, args.out, command.bar("reading captions", "part"))
        done = "written"
    index = captions.CaptionIndex(args.out)
    return f"{args.out}: {done}, {len(index.starts)} captions of {len(names)} videos, {index.unread} of them unreadable"
