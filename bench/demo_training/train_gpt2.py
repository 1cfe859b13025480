"""Train demo-gpt2, a tiny GPT-2, on Shakespeare's plays and export it in the Hugging Face layout of GPT-2.

    python train_gpt2.py --text shakespeare-plays.txt --out OUT_DIR --work WORK_DIR --steps 1900

The last 5 % of the text are held out (WORK_DIR/heldout.txt); the 2 % before them choose the best checkpoint,
so the held-out text is looked at once, at the end.
"""

import argparse
import copy
import math
import os
import re
import time

import torch
import torch.nn.functional as F
from gpt2_checkpoint import CONFIG, END, TinyGPT2, build_tokenizer, export
from optim import make_optimizers, set_lr


def split_text(text):
    """(train, validation, heldout): 93 %, 2 %, 5 %, cut at blank lines."""
    a, b = (text.index("\n\n", int(len(text) * share)) + 2 for share in (0.93, 0.95))
    return text[:a], text[a:b], text[b:]


def encode(tok, text):
    """Ids of a text, with one <|endoftext|> before it."""
    return torch.tensor([tok.token_to_id(END)] + tok.encode(text).ids)


def scene_rows(text, tok, length):
    """[scenes, length]: <|endoftext|> and the first tokens of every scene, to begin a text from nothing."""
    starts, size = [m.start() for m in re.finditer(r"^SCENE ", text, re.M)], 8 * length
    return torch.stack([encode(tok, text[i : i + size])[:length] for i in starts if i + size < len(text)])


@torch.no_grad()
def text_loss(logits, ids, context=256, stride=128, batch=32):
    """Mean loss in nats per token of ids[1:] by sliding windows of `context` tokens: each token is predicted
    from at least context - stride tokens before it, except the first ones.  logits: ids [B, T] to [B, T, V].
    """
    total, count = 0.0, 0
    starts = list(range(0, max(1, len(ids) - (context - stride)), stride))
    for at in range(0, len(starts), batch):
        windows = [ids[s : s + context] for s in starts[at : at + batch]]
        x = torch.nn.utils.rnn.pad_sequence(windows, batch_first=True)
        y = torch.nn.utils.rnn.pad_sequence([w[1:] for w in windows], batch_first=True, padding_value=-100)
        y[max(0, 1 - at) :, : context - stride - 1] = -100  # counted by the window before
        total += F.cross_entropy(logits(x)[:, :-1].float().flatten(0, 1), y.flatten(), reduction="sum").item()
        count += (y != -100).sum().item()
    assert count == len(ids) - 1, (count, len(ids))
    return total / count


def bits_per_byte(loss, ids, text):
    return loss * (len(ids) - 1) / math.log(2) / len(text.encode())


def train(model, tok, text, valid, a, say):
    """Train in place; the weights that were best on the validation text are kept."""
    ids, valid_ids = encode(tok, text), encode(tok, valid)
    scenes = scene_rows(text, tok, model.c["n_positions"] + 1)
    opts = make_optimizers(
        model, lambda name, x: x.dim() == 2 and name not in ("wte", "wpe"), a.lr_muon, a.lr_adam, a.weight_decay
    )
    best, best_state, start, shown, tokens = float("inf"), None, time.time(), [], 0
    for step in range(1, a.steps + 1):
        t, b = model.c["n_positions"], a.batch
        if step <= a.short * a.steps:  # as many tokens, in rows half as long
            t, b = t // 2, b * 2
        rows = torch.stack([ids[i : i + t + 1] for i in torch.randint(len(ids) - t - 1, (b,))])
        rows[: b // 16] = scenes[torch.randint(len(scenes), (b // 16,)), : t + 1]
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1).float(), rows[:, 1:].flatten())
        loss.backward()
        set_lr(opts, step - 1, a.steps)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in opts:
            o.step()
            o.zero_grad()
        tokens += b * t
        shown.append(loss.item())
        if step % 50 == 0:
            seconds = time.time() - start
            say(
                f"step {step} loss {sum(shown) / len(shown):.4f} "
                f"{tokens} tokens {tokens / seconds:.0f} tok/s {seconds:.0f} s"
            )
            shown = []
        if step % a.eval_every == 0 or step == a.steps:
            model.eval()
            with torch.autocast("cpu", torch.bfloat16):
                v = text_loss(model, valid_ids)
            say(f"valid {step} loss {v:.4f} bits/byte {bits_per_byte(v, valid_ids, valid):.4f}")
            if v < best:
                best, best_state = v, copy.deepcopy(model.state_dict())
                torch.save(best_state, os.path.join(a.work, "model.pt"))
    model.load_state_dict(best_state)
    model.eval()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--text", required=True)
    p.add_argument("--out", required=True, help="checkpoint directory to write")
    p.add_argument("--work", required=True, help="directory for heldout.txt, log and float32 weights")
    p.add_argument("--steps", type=int, default=1900)
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--lr-muon", type=float, default=5e-3)
    p.add_argument("--lr-adam", type=float, default=4e-3)
    p.add_argument("--weight-decay", type=float, default=0.1)
    p.add_argument("--vocab-size", type=int, default=2047, help="without <|endoftext|>")
    p.add_argument("--dropout", type=float, default=0.1, help="of embeddings and residual branches")
    p.add_argument("--short", type=float, default=0.6, help="share of the steps, with half the context")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--eval-every", type=int, default=200)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    os.makedirs(a.work, exist_ok=True)
    with open(a.text, encoding="utf-8") as f:
        text, valid, heldout = split_text(f.read())
    with open(os.path.join(a.work, "heldout.txt"), "w", encoding="utf-8") as f:
        f.write(heldout)
    tok, merges = build_tokenizer(text, a.vocab_size)
    end = tok.token_to_id(END)
    model = TinyGPT2(
        dict(
            CONFIG,
            vocab_size=tok.get_vocab_size(),
            bos_token_id=end,
            eos_token_id=end,
            embd_pdrop=a.dropout,
            resid_pdrop=a.dropout,
        )
    )
    with open(os.path.join(a.work, "train.log"), "a", buffering=1) as log:

        def say(line):
            print(line, flush=True)
            print(line, file=log)

        say(f"parameters {sum(x.numel() for x in model.parameters())}, {vars(a)}")
        train(model, tok, text, valid, a, say)
        with torch.no_grad():
            for x in model.parameters():
                x.copy_(x.bfloat16().float())
        ids = encode(tok, heldout)
        loss = text_loss(model, ids)
        say(
            f"heldout loss {loss:.4f} perplexity {math.exp(loss):.2f} bits/byte {bits_per_byte(loss, ids, heldout):.4f}"
        )
    export(model, tok, merges, a.out)


if __name__ == "__main__":
    main()
