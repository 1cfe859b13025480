"""What happens inside the two demo models, in three tables: `python bench/demo_training/inside.py`."""

import numpy as np

import cgpt


def words(model: cgpt.Model, ids) -> list[str]:
    return [repr(model.tokenizer.decode([int(i)])) for i in ids]


def logit_lens() -> None:
    """What GPT-2 would say next if it ended after fewer blocks."""
    model, prompt = cgpt.load("demo-gpt2"), "ROMEO:\nWhat, art thou"
    seen = model.inspect(prompt, ["lens_ids", "lens_logprobs"], top=4)
    print(f"The next token after {prompt!r}, in per cent, if the head read the hidden state after so many blocks")
    for blocks, (ids, logprobs) in enumerate(zip(seen["lens_ids"][:, -1], seen["lens_logprobs"][:, -1], strict=True)):
        pairs = zip(words(model, ids), 100 * np.exp(logprobs), strict=True)
        print(f"  {blocks}  " + "".join(f"{word:>12s} {share:2.0f}" for word, share in pairs))


def sinks(model: cgpt.Model, ids: list[int]) -> None:
    """Where attention goes, in per cent: the mean over tokens."""
    names = "sink_mass", "window_mass", "beyond_mass"
    seen = model.inspect(ids, names)
    print(f"\nWhere attention goes in a chat of {len(ids)} tokens: sink / last 128 / before them, in per cent")
    for layer, window in enumerate(model.transformer.windows):
        shares = np.stack([seen[name][layer].mean(-1) for name in names], -1)  # [H, 3]
        heads = "".join("{:>6.0f}/{:2.0f}/{:2.0f}".format(*share) for share in 100 * shares)
        print(f"  layer {layer} ({f'window {window}' if window else 'full':10s})  {heads}")


def experts(model: cgpt.Model, ids: list[int]) -> None:
    """Which tokens each expert of one layer is the first choice of."""
    layer = len(model.transformer.blocks) - 1
    seen = model.inspect(ids, ["router_choices", "expert_load"])
    first = seen["router_choices"][layer, :, 0]
    print(f"\nThe experts of layer {layer}: how often chosen, and the tokens that put them first")
    for expert, load in enumerate(seen["expert_load"][layer]):
        found, counts = np.unique(np.asarray(ids)[first == expert], return_counts=True)
        likeliest = found[np.argsort(-counts, kind="stable")][:8]
        print(f"  {expert}  {load:4d}  " + " ".join(words(model, likeliest)))


def main() -> None:
    logit_lens()
    model = cgpt.load("demo-gpt-oss")
    system = (
        "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n\nReasoning: high\n\n"
        "# Valid channels: analysis, commentary, final. Channel must be included for every message."
    )
    chat = f"<|start|>system<|message|>{system}<|end|><|start|>user<|message|>Sort 45, 31, 7, 86, 15.<|end|>"
    chat += "<|start|>assistant"
    ids = model.tokenizer.encode(chat, allowed_special="all")
    ids += model.generate(ids, max_new_tokens=200, temperature=0).ids
    print(f"\nThe model's answer: {model.tokenizer.decode(ids)[len(chat) :]}")
    sinks(model, ids)
    experts(model, ids)


if __name__ == "__main__":
    main()
