"""The command `cgpt pull`."""

from __future__ import annotations

import argparse
import shlex

from cgpt.checkpoint.hub import pull

SUMMARY = "download a checkpoint from the Hugging Face hub: only the files that cgpt reads"
EXAMPLES = """\
  cgpt pull openai-community/gpt2
  cgpt pull openai/gpt-oss-20b --local-dir ./gpt-oss-20b    (13.8 GB)
  HF_TOKEN=... cgpt pull someone/private-gpt2 --revision v1"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    parser.add_argument("id", metavar="ID", help="of a model on the hub, or gpt2 and the like for the published ones")
    parser.add_argument("--revision", metavar="NAME", help="a branch, tag or commit (default: main)")
    parser.add_argument("--local-dir", metavar="DIR", help="where to put the files (default: the hub's own cache)")


def run(args: argparse.Namespace) -> None:
    """Downloads it, and says where it is."""
    directory = pull(args.id, args.revision, args.local_dir)
    model = directory if args.local_dir or args.revision else args.id
    print(f"{args.id} is in {directory}; try: cgpt generate --model {shlex.quote(str(model))} PROMPT")
