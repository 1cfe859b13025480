"""How often would a cache of experts hit? Records which experts a model chooses, and replays that through caches.

    python bench/expert_hits.py DIR [--prompt TEXT] [--new 1000] [--temperature 1] [--shares 0.1 0.25 0.3 0.5] [--json]

The model, any gpt-oss that fits here, continues the prompt (default: 16 random ids), and then reads what it has written
to show its routers' choices. One cache holds a share of all experts of all layers, drops the one that was not used for
longest, and starts empty. Printed for each share: the hits of all choices after the first quarter of the text, when it
is warm. Beside them the share of a token's experts that the token before chose too, and what the most popular 30 % of
each layer's experts, if they were known before, would hit.

--ids random takes the ids at random instead of generating them, as `cgpt bench` does.
"""

import argparse
import json
from collections import OrderedDict

import numpy as np
from common import say

import cgpt
from cgpt.errors import InputError


def lru_hits(choices: np.ndarray, slots: int) -> np.ndarray:
    """bool [T, n]: whether the expert, an integer in `choices` [T, n], was in the cache of `slots` as it was used."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = np.zeros(choices.shape, bool)
    for place, expert in np.ndenumerate(choices):
        hits[place] = expert in cache
        cache[expert] = None
        cache.move_to_end(expert)
        if len(cache) > slots:
            cache.popitem(last=False)
    return hits


def repeated(choices: np.ndarray) -> float:
    """The share of the experts of a token that the one before chose too; choices [T, n], none twice in a row."""
    return float(np.mean([np.isin(now, before).mean() for before, now in zip(choices, choices[1:], strict=False)]))


def popular(choices: np.ndarray, slots: int) -> float:
    """The share of all choices that fall on the `slots` experts chosen most."""
    return float(np.sort(np.unique(choices, return_counts=True)[1])[::-1][:slots].sum() / choices.size)


def choices_of(model: cgpt.Model, ids: list[int]) -> np.ndarray:
    """int [T, L * k]: the experts each token chose, in the order they are used, numbered through all layers."""
    chosen = model.inspect(ids, "router_choices")["router_choices"]  # [L, T, k]
    layers = np.arange(len(chosen))[:, None, None]
    numbered = chosen + layers * model.config.num_experts
    return numbered.swapaxes(0, 1).reshape(len(ids), -1)


def measure(model: cgpt.Model, ids: list[int], shares: list[float]) -> dict:
    choices, experts = choices_of(model, ids), len(model.transformer.blocks) * model.config.num_experts
    warm = len(ids) // 4
    hits = {share: float(lru_hits(choices, int(share * experts))[warm:].mean()) for share in shares}
    return {
        "tokens": len(ids),
        "experts": experts,
        "per_token": choices.shape[1],
        "used": len(np.unique(choices)),
        "repeated": repeated(choices),
        "popular_30": popular(choices, int(0.3 * experts)),
        "lru_hits": hits,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint of gpt-oss")
    parser.add_argument("--prompt")
    parser.add_argument("--new", type=int, default=1000)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ids", choices=("generated", "random"), default="generated")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.2, 0.25, 0.3, 0.4, 0.5])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    with cgpt.load(a.model, threads=a.threads) as model:
        if not hasattr(model.config, "num_experts"):
            raise InputError(f"{a.model}: has no experts")
        rng = np.random.default_rng(a.seed)
        ids = rng.integers(0, model.vocab_size, 16 if a.ids == "generated" else a.new).tolist()
        if a.ids == "generated":
            prompt = ids if a.prompt is None else model.encode_prompt(a.prompt)
            done = model.generate(prompt, max_new_tokens=a.new, temperature=a.temperature, seed=a.seed, ignore_eos=True)
            ids = list(done.ids)
        say(f"{len(ids)} ids of {a.model}, {a.ids}")
        found = measure(model, ids, a.shares)
    if a.json:
        print(json.dumps(found))
        return
    print(f"{found['experts']} experts, {found['used']} of them used; a token takes {found['per_token']}")
    print(
        f"chosen by the token before too: {found['repeated']:.1%}; by the 30 % most popular: {found['popular_30']:.1%}"
    )
    for share, hit in found["lru_hits"].items():
        print(f"  {share:4.0%} of the experts, least recently used dropped: {hit:6.1%} hits")


if __name__ == "__main__":
    main()
