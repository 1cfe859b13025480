"""How fast are prompts read, does that hold for long ones, and what memory do they take?

    python bench/prefill.py MODEL [--lengths 32 128 512 2048 8192 32768] [--threads 1 2] [--repetitions 3]

Long prompts go through the model in chunks, so memory should grow by the cache alone. What does not fit the model's
context is left out; 32,768 tokens of gpt-oss-20b take long where a prompt is slow.
"""

from common import arguments, run


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 128, 512, 1024, 2048, 8192, 32768])
    a = parser.parse_args()
    print()
    for row in run(a, prompts=a.lengths, gens=[0]):
        if row["peak_memory_bytes"] is not None:
            print(f"{row['test']:12s}{row['n_threads']:3d} threads: {row['peak_memory_bytes'] / 1e9:6.2f} GB in memory")


if __name__ == "__main__":
    main()
