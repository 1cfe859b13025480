"""Train demo-gpt-oss, a tiny gpt-oss, on the chats of demo_tasks.py; export it in the layout of gpt-oss-20b.

    python train_gptoss.py --out OUT_DIR --work WORK_DIR --steps 3000
    python train_gptoss.py --out OUT_DIR --work WORK_DIR --init CHECKPOINT_DIR --seed 2 --focus 0.5 \\
        --qat-from 0 --steps 5000 --lr-muon 1e-3 --lr-adam 7e-4 --decay 1         # go on from a checkpoint
"""

import argparse
import os
import time
from collections import defaultdict

import gptoss_checkpoint as checkpoint
import torch
import torch.nn.functional as F
from demo_problems import Source
from demo_tasks import MIX, make_chat
from demo_tokenizer import VOCAB_SIZE, Encoder, build_tokenizer
from gptoss_model import TinyGptOss, balance_loss
from optim import make_optimizers, set_lr
from tokenizers import Tokenizer

IGNORED = -100  # target id of positions without a loss
# --focus: (task, effort or None for any) of the chats drawn besides those of MIX, and their weights
FOCUS = {
    ("largest", "low"): 8,
    ("largest", None): 4,
    ("sort", "low"): 3,
    ("subtract", None): 3,
    ("subtract", "low"): 2,
    ("two_turn", None): 5,
    ("two_turn", "low"): 3,
    ("tool_call", None): 10,
    ("tool_answer", None): 8,
    ("uppercase", None): 4,
    ("uppercase", "low"): 1,
    ("smalltalk", None): 2,
    ("reverse", "low"): 1,
    ("last_word", None): 1,
}


def mixture(source, focus):
    """Endless chats: a share `focus` of them drawn from FOCUS, the rest from MIX."""
    while True:
        extra = ()
        if focus and source.r.random() < focus:
            extra = source.r.choices(list(FOCUS), FOCUS.values())[0]
        yield make_chat(source, *extra)


def evenly(source):
    """Endless chats, every task in turn."""
    while True:
        for task in MIX:
            yield make_chat(source, task)


def batches(chats, encoder, tokens):
    """Endless (ids [B, T], target [B, T] with IGNORED where there is no loss, tasks [B]).  Chats of similar
    length share a batch of about `tokens` tokens."""
    buckets = defaultdict(list)
    for chat in chats:
        p, g = encoder.prompt(chat), encoder.target(chat)
        t = -(-(len(p) + len(g) - 1) // 16) * 16
        buckets[t].append((p, g, chat.task))
        if len(buckets[t]) >= max(1, tokens // t):
            yield collate(buckets.pop(t), t, encoder.special["<|endoftext|>"])


def collate(items, t, pad):
    ids = torch.full((len(items), t), pad)
    target = torch.full((len(items), t), IGNORED)
    for row, (p, g, _) in enumerate(items):
        n = len(p) + len(g) - 1
        ids[row, :n] = torch.tensor((p + g)[:-1])
        target[row, len(p) - 1 : n] = torch.tensor(g)
    return ids, target, [x[2] for x in items]


@torch.no_grad()
def evaluate(model, encoder, count, seed, quantise=True):
    """Of `count` held-out chats, {task or "all": share} whose every target token is the arg-max given the
    tokens before it, so that greedy decoding would give exactly the target; and the mean loss per token."""
    right, seen, loss, tokens = defaultdict(int), defaultdict(int), 0.0, 0
    for ids, target, names in batches(evenly(Source(seed, "heldout")), encoder, 4096):
        flat = target.view(-1)
        keep = (flat != IGNORED).nonzero()[:, 0]
        logits = model(ids, keep, quantise)[0].float()
        loss += F.cross_entropy(logits, flat[keep], reduction="sum").item()
        tokens += len(keep)
        missed = (logits.argmax(-1) != flat[keep]).float()
        wrong = torch.zeros(len(names)).index_add(0, keep // ids.shape[1], missed)
        for name, w in zip(names, wrong.tolist(), strict=True):
            for key in (name, "all"):
                seen[key] += 1
                right[key] += w == 0
        if seen["all"] >= count:
            return {k: right[k] / seen[k] for k in ["all", *MIX] if seen[k]}, loss / tokens


def round_to_bf16(model):
    """Everything but the experts' matrices (which MXFP4 rounds) to bf16, in place."""
    with torch.no_grad():
        for n, p in model.named_parameters():
            if n.split(".")[-1] not in ("gate", "up", "down"):
                p.copy_(p.bfloat16().float())


def is_hidden(name, p):
    """Whether Muon takes a parameter."""
    return p.dim() >= 2 and "bias" not in name and "router" not in name and name not in ("embedding", "head")


def begin(a):
    """(model, tokenizer): new ones, or those of the checkpoint directory --init."""
    if a.init:
        tok = Tokenizer.from_file(os.path.join(a.init, "tokenizer.json"))
        return checkpoint.load(a.init, not a.no_compile), tok
    tok = build_tokenizer()
    c = dict(
        checkpoint.CONFIG,
        vocab_size=VOCAB_SIZE,
        eos_token_id=tok.token_to_id("<|return|>"),
        pad_token_id=tok.token_to_id("<|endoftext|>"),
    )
    return TinyGptOss(c, not a.no_compile), tok


def train(model, encoder, a, say):
    opts = make_optimizers(model, is_hidden, a.lr_muon, a.lr_adam, a.weight_decay)
    source = Source(a.seed, "train", random_cities=a.focus)
    data = batches(mixture(source, a.focus), encoder, a.batch_tokens)
    start, tokens, shown = time.time(), 0, []
    for step in range(1, a.steps + 1):
        ids, target, _ = next(data)
        quantise = step > a.qat_from * a.steps
        flat = target.view(-1)
        keep = (flat != IGNORED).nonzero()[:, 0]
        with torch.autocast("cpu", torch.bfloat16):
            logits, routed = model(ids, keep, quantise)
            loss = F.cross_entropy(logits.float(), flat[keep])
            balance = balance_loss(routed, (ids != model.c["pad_token_id"]).view(-1))
        (loss + a.balance * balance).backward()
        set_lr(opts, step - 1, a.steps, decay=a.decay)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in opts:
            o.step()
            o.zero_grad()
        tokens += ids.numel()
        shown.append((loss.item(), balance.item()))
        if step % 50 == 0:
            seconds, (loss, balance) = time.time() - start, torch.tensor(shown).mean(0).tolist()
            say(
                f"step {step} loss {loss:.4f} balance {balance:.3f} tokens {tokens} "
                f"{tokens / seconds:.0f} tok/s {seconds:.0f} s"
            )
            shown = []
        if step % a.eval_every == 0 or step == a.steps:
            with torch.autocast("cpu", torch.bfloat16):
                shares, held = evaluate(model, encoder, a.eval_chats, 0, quantise)
            say(f"eval {step} loss {held:.4f} exact " + " ".join(f"{k} {v:.3f}" for k, v in shares.items()))
            torch.save(model.state_dict(), os.path.join(a.work, "model.pt"))
    say(f"done {time.time() - start:.0f} s, {tokens} tokens")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", required=True, help="checkpoint directory to write")
    p.add_argument("--work", required=True, help="directory for the log and the float32 weights (model.pt)")
    p.add_argument("--init", metavar="DIR", help="go on from this checkpoint (with another --seed)")
    p.add_argument("--resume", action="store_true", help="go on from WORK/model.pt (--steps 0: export it)")
    p.add_argument("--steps", type=int, default=3000)
    p.add_argument("--batch-tokens", type=int, default=6144)
    p.add_argument("--lr-muon", type=float, default=4e-3)
    p.add_argument("--lr-adam", type=float, default=3e-3)
    p.add_argument("--decay", type=float, default=0.5, help="share of the steps in which the rates fall to 0")
    p.add_argument("--weight-decay", type=float, default=0.05)
    p.add_argument("--balance", type=float, default=0.01, help="weight of the load-balancing loss")
    p.add_argument("--qat-from", type=float, default=0.4, help="share of the steps before MXFP4 is simulated")
    p.add_argument(
        "--focus",
        type=float,
        default=0.0,
        help="share of the chats drawn from the weak tasks (FOCUS), of cities of random letters",
    )
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--eval-every", type=int, default=500)
    p.add_argument("--eval-chats", type=int, default=600)
    p.add_argument("--no-compile", action="store_true", help="no torch.compile, so no C++ compiler; slower")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    os.makedirs(a.work, exist_ok=True)
    model, tok = begin(a)
    if a.resume:
        model.load_state_dict(torch.load(os.path.join(a.work, "model.pt")))
    with open(os.path.join(a.work, "train.log"), "a", buffering=1) as log:

        def say(line):
            print(line, flush=True)
            print(line, file=log)

        say(f"parameters {sum(p.numel() for p in model.parameters())}, {vars(a)}")
        train(model, Encoder(tok), a, say)
    round_to_bf16(model)
    checkpoint.export(model, tok, a.out)


if __name__ == "__main__":
    main()
