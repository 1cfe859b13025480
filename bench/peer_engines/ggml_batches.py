"""What llama.cpp and what came from it share: batches of tokens of several sequences, whose logits are asked for."""

from typing import Any

import numpy as np

from peer_engines.base import Engine
from peer_engines.gguf_file import write_gguf

BATCH = 512  # tokens in a call, as in its own llama-bench


class GgmlEngine(Engine):
    """`api` has llama_batch_init, llama_decode, llama_get_logits_ith and llama_free. The cache is f16, the default."""

    api: Any
    context_of: tuple[int, int] | None = None  # sequences and positions that the context was made for

    def prepare(self, work):
        out = work / f"{self.precision}.gguf"
        if not out.exists():
            write_gguf(self.checkpoint, self.config, out, self.precision.split("+")[-1])
        return out

    def new_context(self, sequences: int) -> Any:
        """A llama_context of self.context positions for each sequence."""
        raise NotImplementedError

    def clear(self) -> None:
        """Empties the context's cache."""
        raise NotImplementedError

    def reset(self, sequences) -> None:
        if self.context_of is None:
            self.batch = self.api.llama_batch_init(BATCH, 0, 1)
        if self.context_of != (sequences, self.context):
            if self.context_of:
                self.api.llama_free(self.llama)
            self.llama = self.new_context(sequences)
            self.context_of = sequences, self.context
        self.clear()
        self.position = 0

    def step(self, ids) -> np.ndarray:
        count = len(ids[0])
        logits = np.empty((len(ids), self.config["vocab_size"]), np.float32)
        tokens = [(sequence, i) for sequence in range(len(ids)) for i in range(count)]
        for begin in range(0, len(tokens), BATCH):
            part, last = tokens[begin : begin + BATCH], {}
            for at, (sequence, i) in enumerate(part):
                self.batch.token[at], self.batch.pos[at] = ids[sequence][i], self.position + i
                self.batch.n_seq_id[at], self.batch.seq_id[at][0] = 1, sequence
                self.batch.logits[at] = i + 1 == count
                if i + 1 == count:
                    last[sequence] = at
            self.batch.n_tokens = len(part)
            if code := self.api.llama_decode(self.llama, self.batch):
                raise RuntimeError(f"llama_decode gave {code}")
            for sequence, at in last.items():
                pointer = self.api.llama_get_logits_ith(self.llama, at)
                logits[sequence] = np.ctypeslib.as_array(pointer, (logits.shape[1],))
        self.position += count
        return logits
