"""ctranslate2. Its converter reads a transformers model; its decoding cannot be stepped, but streams."""

import shutil
from queue import SimpleQueue

import numpy as np

from peer_engines.base import Engine


class CTranslate2(Engine):
    packages = ("ctranslate2",)
    settings = {
        "gpt2": {
            "f32": "f32, products and cache f32",
            "int8": "int8 by rows, products of 8-bit activations, cache f32",
        }
    }
    TYPES = {"f32": "float32", "int8": "int8"}

    def prepare(self, work):
        out = work / f"ctranslate2-{self.precision}"
        if (out / "model.bin").exists():
            return out
        from ctranslate2.converters.transformers import GPT2Loader
        from transformers import GPT2LMHeadModel

        model = GPT2LMHeadModel.from_pretrained(self.checkpoint)
        spec = GPT2Loader().get_model_spec(model)
        vocabulary = [str(i) for i in range(model.config.vocab_size)]  # the ids themselves: no tokenizer is needed
        spec.register_vocabulary(vocabulary)
        spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = vocabulary[-1]
        spec.validate()
        spec.optimize(quantization=None if self.precision == "f32" else self.TYPES[self.precision])
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        spec.save(str(out))
        return out

    def load(self, path) -> None:
        import ctranslate2

        self.ctranslate2 = ctranslate2
        self.generator = ctranslate2.Generator(
            str(path),
            device="cpu",
            compute_type=self.TYPES[self.precision],
            inter_threads=1,
            intra_threads=self.threads,
        )

    def tokens(self, prompts, n):
        found: SimpleQueue[tuple[int, int]] = SimpleQueue()  # sequence and token, from its own thread
        self.generator.generate_batch(
            [[str(i) for i in ids] for ids in prompts],
            asynchronous=True,
            include_prompt_in_result=False,
            max_length=n,
            min_length=n,
            sampling_topk=1,
            callback=lambda result: found.put((result.batch_id, result.token_id)) or False,
        )
        for _ in range(n):
            yield [token for _, token in sorted(found.get(timeout=600) for _ in prompts)]

    def logits(self, ids):
        out = self.generator.forward_batch([ids])
        return np.array(out)[0, -1]
