"""Check an exported demo-gpt-oss with transformers (float32, eager, dequantised) and record what it answers.

    python verify_gptoss.py --model DIR --count 500 [--even] [--seed 1000]
    python verify_gptoss.py --model DIR --count 204 --even --problems problems.json --expected expected.json

1. Logits of our own torch model, read back from the file, against transformers' GptOssForCausalLM.
2. The tokenizer: tokenizer.json against rank-based BPE (tiktoken).
3. Greedy answers of transformers to held-out problems; accuracy per task and effort.
"""

import argparse
import json
import os
from collections import defaultdict

import gptoss_checkpoint as checkpoint
import tiktoken
import torch
import transformers
from demo_harmony import SPECIALS, correct, render_message
from demo_problems import Source
from demo_tasks import MIX, make_chat
from demo_tokenizer import Encoder, byte_alphabet
from tokenizers import Tokenizer

ODD_TEXTS = [
    "Don't you'LL see  naïve café 😀\n\n  x\t12345 ABCdef analysisuser assistants",
    " ",
    "\n\n\n",
    "\u0000\uffff",
]


def load_hf(path):
    return transformers.AutoModelForCausalLM.from_pretrained(
        path,
        dtype=torch.float32,
        attn_implementation="eager",
        quantization_config=transformers.Mxfp4Config(dequantize=True),
    ).eval()


def compare_logits(model, hf, encoder, count=12):
    """Largest |difference| of the two models' logits over held-out chats; tokens of the longest."""
    s, worst, longest = Source(77, "heldout"), 0.0, 0
    chats = [make_chat(s) for _ in range(count * 10)]
    for ids in sorted((encoder.prompt(c) + encoder.target(c) for c in chats), key=len)[::10]:
        x = torch.tensor([ids])
        a, b = model(x, quantise=False)[0], hf(x, use_cache=False).logits[0]
        worst, longest = max(worst, (a - b).abs().max().item()), max(longest, len(ids))
    return worst, longest


def greedy(hf, prompts, stop, pad, limit=200, batch=50):
    """Greedy continuations up to and including a stop id, in the order of the prompts."""
    out = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for at in range(0, len(order), batch):
        part = order[at : at + batch]
        n = max(len(prompts[i]) for i in part)
        ids = torch.tensor([[pad] * (n - len(prompts[i])) + prompts[i] for i in part])
        mask = torch.tensor([[0] * (n - len(prompts[i])) + [1] * len(prompts[i]) for i in part])
        y = hf.generate(
            ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, eos_token_id=stop, pad_token_id=pad
        )
        for i, row in zip(part, y[:, n:].tolist(), strict=True):
            ends = [k for k, t in enumerate(row) if t in stop]
            out[i] = row[: ends[0] + 1] if ends else row
    return out


def continuation_logprobs(hf, prompt, ids):
    """Log-probabilities [len(ids), V] (float64) of what may follow the prompt and then each of the ids."""
    z = hf(torch.tensor([prompt + ids[:-1]]), use_cache=False).logits[0, len(prompt) - 1 :]
    return z.double().log_softmax(-1)


def check_tokenizer(tok, path, texts):
    """The number of texts on which tokenizer.json differs from tiktoken built of its vocabulary, or does not
    decode to the text."""
    with open(os.path.join(path, "tokenizer.json"), encoding="utf-8") as f:
        d = json.load(f)
    byte = {c: b for b, c in byte_alphabet().items()}
    special = {t["content"]: t["id"] for t in d["added_tokens"]}
    ranks = {bytes(byte[c] for c in t): i for t, i in d["model"]["vocab"].items() if t not in special}
    enc = tiktoken.Encoding(
        "demo",
        pat_str=d["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"],
        mergeable_ranks=ranks,
        special_tokens=special,
    )
    ids = [tok.encode(t, add_special_tokens=False).ids for t in texts]
    return sum(i != enc.encode_ordinary(t) or enc.decode(i) != t for i, t in zip(ids, texts, strict=True))


def chat_texts(chats):
    """The texts between special tokens of held-out chats, each once."""
    s = Source(5, "heldout")
    made = [make_chat(s) for _ in range(chats)]
    return {p for c in made for m in c.messages + c.target for p in render_message(m) if p not in SPECIALS}


def make_problems(encoder, seed, count, even):
    """`count` different held-out problems (chat, prompt ids) in MIX's proportions, or every task in turn."""
    s, out, seen, tasks = Source(seed, "heldout"), [], set(), list(MIX)
    while len(out) < count:
        c = make_chat(s, tasks[len(out) % len(tasks)] if even else None)
        p = encoder.prompt(c)
        if tuple(p) not in seen and len(p) < 320:
            seen.add(tuple(p))
            out.append((c, p))
    return out


def solve(hf, encoder, problems, stop, pad):
    """The problems with transformers' greedy answers, as dicts.  A batch is padded; that the padding changed
    no answer is checked by one pass over each sequence alone, which also gives the closest call."""
    records, closest = [], float("inf")
    answers = greedy(hf, [p for _, p in problems], stop, pad)
    for (c, prompt), ids in zip(problems, answers, strict=True):
        top = continuation_logprobs(hf, prompt, ids).topk(2)
        assert top[1][:, 0].tolist() == ids, "padding changed an answer"
        closest = min(closest, (top[0][:, 0] - top[0][:, 1]).min().item())
        right = correct(encoder.decode(ids), c.answer)
        records.append(
            dict(
                task=c.task,
                effort=c.effort,
                messages=c.messages,
                prompt_ids=prompt,
                answer=c.answer,
                greedy_ids=ids,
                greedy_correct=right,
            )
        )
        if not right:
            print(
                "WRONG",
                c.task,
                c.effort,
                json.dumps(c.messages[-1]["content"]),
                "->",
                json.dumps(encoder.decode(ids)[-90:]),
                "expected",
                json.dumps(c.answer),
            )
    print(f"closest call of all greedy choices: {closest:.1e} nats between the first and the second token")
    return records


def accuracy(records):
    return sum(r["greedy_correct"] for r in records) / len(records)


def report(records):
    print(f"\naccuracy {accuracy(records):.4f} on {len(records)} held-out problems")
    for key in ("task", "effort"):
        groups = defaultdict(list)
        for r in records:
            groups[r[key]].append(r)
        for name in sorted(groups):
            right = sum(r["greedy_correct"] for r in groups[name])
            print(f"  {key} {name:14s} {right:4d}/{len(groups[name]):<4d} {accuracy(groups[name]):.3f}")


def expected_cases(hf, records):
    """For the first problem of each task: the log-probabilities of the greedy answer's tokens, and the five
    likeliest first tokens."""
    first = {}
    for n, r in enumerate(records):
        first.setdefault(r["task"], n)
    for n in first.values():
        ids = records[n]["greedy_ids"]
        logp = continuation_logprobs(hf, records[n]["prompt_ids"], ids)
        top = logp[0].topk(5)
        each = logp[torch.arange(len(ids)), torch.tensor(ids)].tolist()
        yield dict(
            problem=n,
            greedy_logprobs=[round(v, 7) for v in each],
            top5=[[i, round(v, 7)] for v, i in zip(top[0].tolist(), top[1].tolist(), strict=True)],
        )


def write(path, **data):
    made = f"transformers {transformers.__version__}, torch {torch.__version__}, float32, eager, dequantised"
    with open(path, "w", encoding="utf-8") as f:
        json.dump(dict(made_with=made, **data), f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--count", type=int, default=500)
    p.add_argument("--even", action="store_true", help="as many problems of every task")
    p.add_argument("--seed", type=int, default=1000)
    p.add_argument("--problems", help="write the problems with transformers' greedy answers here")
    p.add_argument("--expected", help="write log-probabilities for one of these problems per task here")
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.set_grad_enabled(False)
    tok = Tokenizer.from_file(os.path.join(a.model, "tokenizer.json"))
    encoder, hf = Encoder(tok), load_hf(a.model)
    worst, longest = compare_logits(checkpoint.load(a.model), hf, encoder)
    print(f"logits: max |torch - transformers| {worst:.2e} on sequences up to {longest} tokens", flush=True)
    texts = [*chat_texts(2000), *ODD_TEXTS]
    print(f"tokenizer: {check_tokenizer(tok, a.model, texts)} of {len(texts)} texts differ from tiktoken")
    with open(os.path.join(a.model, "generation_config.json")) as f:
        g = json.load(f)
    problems = make_problems(encoder, a.seed, a.count, a.even)
    records = solve(hf, encoder, problems, g["eos_token_id"], g["pad_token_id"])
    report(records)
    if a.problems:
        write(a.problems, split="heldout", accuracy=accuracy(records), problems=records)
    if a.expected:
        write(a.expected, cases=list(expected_cases(hf, records)))


if __name__ == "__main__":
    main()
