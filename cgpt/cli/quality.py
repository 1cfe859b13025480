"""The command `cgpt quality`."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from cgpt.analysis import quality
from cgpt.cli.options import ProgressBar, add_model_options, decode, load_model, read_stdin

SUMMARY = "say how far a setting is from the exact computation: KL divergence, agreement, perplexity"
EXAMPLES = """\
  cgpt quality --model ./gpt2 --dense bf16
  cgpt quality --model ./gpt-oss-20b --decode --text notes.txt --context 512"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    add = parser.add_argument
    add("--text", metavar="FILE", help="UTF-8; - reads stdin (default: 4.5 kB of mixed text from the package)")
    add("--context", type=int, metavar="N", help="tokens of the windows that the text is cut into (default: 1024)")
    add("--decode", action="store_true", help="read token by token, as generation does, not as a prompt")
    add("--special", action="store_true", help="names of special tokens in the text are these tokens")
    add("--json", action="store_true", help="print one JSON object")
    add_model_options(parser)


def run(args: argparse.Namespace) -> None:
    """Measures the setting that the options name against precision "exact" with weights and cache as stored."""
    text = read_text(args.text)
    model = load_model(args)
    # The same weights if they are as stored: no second copy of what is not mapped.
    reference = model.at_precision("exact") if args.dense is None else load_model(args, reference=True)
    ids = model.encode_prompt(text, special=args.special)
    with ProgressBar("comparing", unit="tokens") as progress:
        found = quality.compare(reference, model, ids, context=args.context, decode=args.decode, progress=progress)
    setting = {name: getattr(args, name) for name in ("model", "precision", "dense", "decode")}
    setting["kv_cache_dtype"] = model.kv_cache_dtype
    print(json.dumps(setting | asdict(found)) if args.json else render(args, model.kv_cache_dtype, found))


def read_text(path: str | None) -> str:
    """The text of a file, of stdin for "-", of the package for None. InputError where it is not UTF-8."""
    return read_stdin("the text") if path == "-" else decode(Path(path or quality.TEXT).read_bytes(), str(path))


def render(args: argparse.Namespace, kv_cache_dtype: str, found: quality.Quality) -> str:
    """What was measured, as text for a terminal."""
    setting = f"precision {args.precision}, dense matrices {args.dense or 'as stored'}, {kv_cache_dtype} cache"
    way = "as generated, token by token" if args.decode else "as a prompt"
    windows = f"{found.windows} windows of {found.context}" if found.windows > 1 else "one window"
    kl = f"mean {found.kl_mean:.3g} +- {found.kl_mean_se:.1g}, median {found.kl_median:.3g}, "
    kl += f"p99 {found.kl_p99:.3g}, max {found.kl_max:.3g}"
    change = f"{found.perplexity_change:+.4%} +- {found.perplexity_change_se:.4%}".replace("%", " %")
    rows = {
        "model": f"{args.model}, {setting}, read {way}",
        "against": "precision exact, dense matrices as stored, f32 cache",
        "text": f"{args.text or 'of the package'}, {found.tokens} predicted tokens in {windows}",
        "KL divergence": f"{kl} nats",
        "top-1 agreement": f"{found.top1_agreement:.2%}".replace("%", " %"),
        "perplexity": f"{found.perplexity_reference:.4f} -> {found.perplexity:.4f} ({change})",
    }
    return "\n".join(f"{name:17}{value}" for name, value in rows.items())
