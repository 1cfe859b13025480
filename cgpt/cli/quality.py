"""The command `cgpt quality`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cgpt.analysis import quality
from cgpt.analysis.quality import Quality
from cgpt.api import DENSE, load
from cgpt.checkpoint.locate import demo_models
from cgpt.cli.options import DEFAULT_MODEL, ProgressBar
from cgpt.errors import InputError
from cgpt.kernels._kernels import PRECISIONS


def add_quality(command: Any, commands: Any) -> None:
    parser = command(
        commands,
        "quality",
        _quality,
        "say how far a setting is from the exact computation: KL divergence, agreement, perplexity",
        "  cgpt quality --model ./gpt2 --dense bf16\n"
        "  cgpt quality --model ./gpt-oss-20b --decode --text notes.txt --context 512",
    )
    add = parser.add_argument
    models = ", ".join(demo_models())
    help = f"a checkpoint directory, or one of {models} (default: {DEFAULT_MODEL})"
    add("--model", metavar="NAME_OR_DIR", default=DEFAULT_MODEL, help=help)
    add("--precision", choices=PRECISIONS, default="auto", help="the setting to measure (default: auto)")
    add("--dense", choices=DENSE, help="the setting to measure (default: as the checkpoint stores them)")
    add("--text", metavar="FILE", help="UTF-8; - reads stdin (default: 4.5 kB of mixed text from the package)")
    add("--context", type=int, metavar="N", help="tokens of the windows that the text is cut into (default: 1024)")
    add("--decode", action="store_true", help="read token by token, as generation does, not as a prompt")
    add("--threads", type=int, metavar="N", help="default: the physical cores this process may use")
    add("--json", action="store_true", help="print one JSON object")


def _quality(args: argparse.Namespace) -> None:
    text = read_text(args.text)
    with ProgressBar(f"loading {args.model}") as progress:
        model = load(args.model, args.threads, args.precision, args.dense, progress=progress)
    if args.dense is None:
        reference = model.at_precision("exact")  # the same weights: no second copy of what is not mapped
    else:
        with ProgressBar(f"loading {args.model}") as progress:
            reference = load(args.model, args.threads, "exact", progress=progress)
    with ProgressBar("comparing", unit="tokens") as progress:
        found = quality.compare(reference, model, text, context=args.context, decode=args.decode, progress=progress)
    setting = {"model": args.model, "precision": args.precision, "dense": args.dense, "decode": args.decode}
    print(json.dumps(setting | asdict(found)) if args.json else render(args, found))


def read_text(path: str | None) -> str:
    raw = sys.stdin.buffer.read() if path == "-" else Path(path or quality.TEXT).read_bytes()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise InputError(f"{'stdin' if path == '-' else path} is not UTF-8: {problem}") from None


def render(args: argparse.Namespace, found: Quality) -> str:
    setting = f"precision {args.precision}, dense matrices {args.dense or 'as stored'}"
    way = "as generated, token by token" if args.decode else "as a prompt"
    pieces = f"{found.windows} windows of {found.context}" if found.windows > 1 else "one window"
    kl = f"mean {found.kl_mean:.3g} +- {found.kl_mean_se:.1g}, median {found.kl_median:.3g}, "
    kl += f"p99 {found.kl_p99:.3g}, max {found.kl_max:.3g}"
    change = f"{found.perplexity_change:+.4%} +- {found.perplexity_change_se:.4%}".replace("%", " %")
    rows = {
        "model": f"{args.model}, {setting}, read {way}",
        "against": "precision exact, dense matrices as stored",
        "text": f"{args.text or 'of the package'}, {found.tokens} predicted tokens in {pieces}",
        "KL divergence": f"{kl} nats",
        "top-1 agreement": f"{found.top1_agreement:.2%}".replace("%", " %"),
        "perplexity": f"{found.perplexity_reference:.4f} -> {found.perplexity:.4f} ({change})",
    }
    return "\n".join(f"{name:17}{value}" for name, value in rows.items())
