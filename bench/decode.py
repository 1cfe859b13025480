"""How fast does a model generate: at the start of a context and deep in it, for one sequence and for several?

    python bench/decode.py MODEL [--depths 0 1024 4096 32768] [--parallel 1 2 4 8] [--new 32] [--threads 1 2]

Positions before are a cache of random keys and values, so a depth costs no prompt. What does not fit is left out.
"""

from common import arguments, run


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=[0, 900, 4096, 32768])
    parser.add_argument("--parallel", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--new", type=int, default=32)
    a = parser.parse_args()
    rows = run(a, prompts=[0], gens=[a.new], depths=a.depths, parallels=a.parallel)
    print()
    for row in rows:
        one = next(r for r in rows if r["n_parallel"] == min(a.parallel) and r["n_threads"] == row["n_threads"])
        print(
            f"{row['test']:24s}{row['n_threads']:3d} threads: {row['median_ts'] / one['median_ts']:5.2f} x "
            f"the tokens/s of {one['test']}"
        )


if __name__ == "__main__":
    main()
