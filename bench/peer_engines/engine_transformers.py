"""transformers on torch."""

from peer_engines.base import Engine, Skip


class Transformers(Engine):
    packages = ("transformers", "torch")
    settings = {
        "gpt2": {"f32": "f32, products and cache f32", "bf16": "bf16, products and cache bf16"},
        "gpt_oss": {"bf16": "bf16, products and cache bf16"},
    }

    def prepare(self, work):
        if self.config["model_type"] == "gpt_oss":
            raise Skip("dequantises MXFP4 to bf16 on a CPU: 42 GB for the 20b")
        return self.checkpoint

    def load(self, path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(self.threads)
        torch.set_grad_enabled(False)
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[self.precision]
        self.torch, self.model = torch, AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()

    def reset(self, sequences) -> None:
        from transformers import DynamicCache

        self.cache = DynamicCache(config=self.model.config)

    def step(self, ids):
        ids = self.torch.tensor(ids)
        out = self.model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1].float().numpy()
