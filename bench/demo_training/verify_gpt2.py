"""Check an exported demo-gpt2 with transformers (float32, eager), print samples and record its outputs.

    python verify_gpt2.py --model DIR --text heldout.txt [--samples 2]
    python verify_gpt2.py --model DIR --text heldout-20kb.txt --expected expected.json

1. The tokenizer: tokenizer.json against vocab.json + merges.txt, and against tiktoken.
2. Logits of our own torch model against transformers' GPT2LMHeadModel; loss on the held-out text.
3. Greedy continuations and the likeliest tokens of a few prompts; samples at temperature 0.8, top-k 50.
"""

import argparse
import json
import math
import os

import gpt2_checkpoint as checkpoint
import tiktoken
import torch
import transformers
from demo_tokenizer import byte_alphabet
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from train_gpt2 import bits_per_byte, encode, text_loss

PROMPTS = [
    "ROMEO:\n",
    "HAMLET:\nTo be, or not to be",
    "KING HENRY V:\nOnce more unto the breach, dear friends",
    "[Enter ",
    "What is thy name?",
    checkpoint.END,
]
ODD_TEXTS = ["Don't you'll  see naïve café 😀\n\n  x\t12345 ABCdef", " ", "\n\n\n", ""]
SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


def check_tokenizer(path, tok, texts):
    """Numbers of texts on which tokenizer.json differs from vocab.json + merges.txt, and from tiktoken."""
    vocab_path = os.path.join(path, "vocab.json")
    other = ByteLevelBPETokenizer.from_file(vocab_path, os.path.join(path, "merges.txt"))
    with open(vocab_path, encoding="utf-8") as f:
        vocab = json.load(f)
    byte = {c: b for b, c in byte_alphabet().items()}
    special = {checkpoint.END: vocab.pop(checkpoint.END)}
    ranks = {bytes(byte[c] for c in t): i for t, i in vocab.items()}
    enc = tiktoken.Encoding("demo", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens=special)
    pairs = [(t, tok.encode(t).ids) for t in texts]
    return (
        sum(ids != other.encode(t).ids for t, ids in pairs),
        sum(ids != enc.encode_ordinary(t) or enc.decode(ids) != t for t, ids in pairs),
    )


def continuations(hf, tok, count):
    """Greedy continuations of PROMPTS by `count` tokens, with their log-probabilities."""
    end = tok.token_to_id(checkpoint.END)
    for text in PROMPTS:
        prompt = [end] if text == checkpoint.END else tok.encode(text).ids
        x = torch.tensor([prompt])
        out = hf.generate(
            x,
            attention_mask=torch.ones_like(x),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=end,
            eos_token_id=end,
        )
        ids = out[0, len(prompt) :].tolist()
        logp = hf(out[:, :-1]).logits[0, len(prompt) - 1 :].double().log_softmax(-1)
        top, first = logp.topk(2), logp[0].topk(5)
        print(
            f"--- greedy, closest call {(top[0][:, 0] - top[0][:, 1]).min().item():.1e} nats: "
            + json.dumps(text + tok.decode(ids, skip_special_tokens=False))
        )
        yield dict(
            prompt=text,
            prompt_ids=prompt,
            greedy_ids=ids,
            greedy_logprobs=[round(v, 6) for v in top[0][:, 0].tolist()],
            top5=[[i, round(v, 6)] for v, i in zip(first[0].tolist(), first[1].tolist(), strict=True)],
        )


def print_samples(hf, tok, count):
    torch.manual_seed(0)
    end = tok.token_to_id(checkpoint.END)
    for _ in range(count):
        x = torch.tensor([tok.encode(PROMPTS[0]).ids])
        out = hf.generate(
            x,
            attention_mask=torch.ones_like(x),
            max_new_tokens=220,
            do_sample=True,
            temperature=0.8,
            top_k=50,
            pad_token_id=end,
            eos_token_id=end,
        )[0]
        print("--- sample:", tok.decode(out.tolist()))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--text", required=True, help="held-out text")
    p.add_argument("--expected", help="write the loss and the greedy continuations here")
    p.add_argument("--samples", type=int, default=0)
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.set_grad_enabled(False)
    hf = transformers.AutoModelForCausalLM.from_pretrained(
        a.model, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model = checkpoint.load(a.model)
    tok = Tokenizer.from_file(os.path.join(a.model, "tokenizer.json"))
    with open(a.text, encoding="utf-8") as f:
        text = f.read()
    texts = text.split("\n\n") + ODD_TEXTS
    files, ranks = check_tokenizer(a.model, tok, texts)
    print(f"tokenizer: {files} of {len(texts)} texts differ from vocab.json + merges.txt,", f"{ranks} from tiktoken")
    ids = encode(tok, text)
    x = ids[None, :256]
    print(f"logits: max |torch - transformers| {(model(x) - hf(x).logits).abs().max().item():.2e}")
    loss = text_loss(lambda x: hf(x).logits, ids)
    held = dict(
        bytes=len(text.encode()),
        tokens=len(ids) - 1,
        context=256,
        stride=128,
        loss=loss,
        perplexity=math.exp(loss),
        bits_per_byte=bits_per_byte(loss, ids, text),
    )
    print(f"heldout: {json.dumps(held)}")
    cases = list(continuations(hf, tok, 64))
    print_samples(hf, tok, a.samples)
    if a.expected:
        made = f"transformers {transformers.__version__}, torch {torch.__version__}, float32, eager"
        with open(a.expected, "w", encoding="utf-8") as f:
            json.dump(dict(made_with=made, heldout=held, cases=cases), f, ensure_ascii=False, separators=(",", ":"))
            f.write("\n")


if __name__ == "__main__":
    main()
