"""openvino, on a stateful GPT-2 graph written here from the weights; int8 is nncf.compress_weights'.

Its default multiplies in bf16 where the CPU can, and keeps an 8-bit cache; "f32" and "int8-f32" ask for f32 in both.
"""

import numpy as np

from peer_engines.base import Engine, Skip


class OpenVino(Engine):
    packages = ("openvino", "nncf")
    settings = {
        "gpt2": {
            "f32": "f32, products and cache f32",
            "bf16": "f32 read as bf16, products bf16, cache u8: its default where the CPU has bf16",
            "int8": "int8 by rows, products bf16, cache u8: its default where the CPU has bf16",
            "int8-f32": "int8 by rows, products and cache f32",
        },
        "gpt_oss": {"int4": "int4"},
    }

    def prepare(self, work):
        if self.config["model_type"] != "gpt2":
            raise Skip("has no MXFP4 on a CPU; its own int4 would be other weights")
        weights = "int8" if self.precision.startswith("int8") else "f32"
        out = work / f"openvino-{weights}.xml"
        if out.exists():
            return out
        import openvino

        model = gpt2_graph(self.checkpoint, self.config)
        if weights == "int8":
            import nncf

            model = nncf.compress_weights(model)
        openvino.save_model(model, out, compress_to_fp16=False)
        return out

    def load(self, path) -> None:
        import openvino

        options = {"INFERENCE_NUM_THREADS": self.threads, "PERFORMANCE_HINT": "LATENCY"}
        if self.precision.endswith("f32"):
            options |= {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
        self.request = openvino.Core().compile_model(path, "CPU", options).create_infer_request()

    def reset(self, sequences) -> None:
        self.request.reset_state()
        self.position = 0

    def step(self, ids):
        ids = np.array(ids, np.int64)
        positions = self.position + np.arange(ids.shape[1])[None].repeat(len(ids), 0)
        self.position += ids.shape[1]
        feeds = {"input_ids": ids, "position_ids": positions, "beam_idx": np.arange(len(ids), dtype=np.int32)}
        self.request.infer(feeds, share_inputs=True)
        return self.request.get_output_tensor(0).data.reshape(len(ids), -1).copy()


def gpt2_graph(checkpoint, config: dict):
    """input_ids, position_ids [B, T], beam_idx [B] -> logits [B, 1, V], keys and values in variables: the form whose
    concatenation, cache and attention the CPU plugin fuses."""
    import openvino
    from openvino import opset13 as op

    from peer_engines.checkpoint import Reader

    read = Reader(checkpoint)
    C, H = config["n_embd"], config["n_head"]
    D = C // H

    def weight(name: str):
        return op.constant(np.ascontiguousarray(read(read.prefix + name)))

    def ints(*values: int):
        return op.constant(np.array(values, np.int64))

    def linear(x, name: str):  # nncf and the plugin want [out, in]
        matrix = op.constant(np.ascontiguousarray(read(f"{read.prefix}{name}.weight").T))
        return op.add(op.matmul(x, matrix, False, True), weight(f"{name}.bias"))

    def norm(x, name: str):
        x = op.mvn(x, ints(-1), True, config["layer_norm_epsilon"], "inside_sqrt")
        return op.add(op.multiply(x, weight(f"{name}.weight")), weight(f"{name}.bias"))

    def parameter(name: str, dimensions: int, dtype):
        node = op.parameter([-1] * dimensions, dtype)
        node.output(0).set_names({name})
        return node

    ids, positions = parameter("input_ids", 2, np.int64), parameter("position_ids", 2, np.int64)
    beam = parameter("beam_idx", 1, np.int32)
    axis = ints(0)
    wte = op.constant(np.ascontiguousarray(read(read.prefix + "wte.weight")))
    x = op.add(op.gather(wte, ids, axis), op.gather(weight("wpe.weight"), positions, axis))
    scalar = op.constant(np.int64(0))
    total = op.add(op.reduce_max(positions, ints(0, 1)), op.constant(np.int64(1)))
    key_positions = op.range(scalar, total, op.constant(np.int64(1)), "i64")
    seen = op.less_equal(key_positions, op.unsqueeze(positions, ints(1, 3)))  # [B, 1, T, total]
    mask = op.select(seen, op.constant(np.float32(0)), op.constant(np.float32(-np.inf)))
    batch = op.gather(op.shape_of(ids), ints(0), axis)
    sinks = []

    def cached(new, name: str):
        empty = op.broadcast(op.constant(np.float32(0)), op.concat([batch, ints(H, 0, D)], 0))
        past = op.read_value(empty, name, openvino.Type.f32, openvino.PartialShape([-1, H, -1, D]))
        joined = op.concat([op.gather(past, beam, axis), new], 2)
        sinks.append(op.assign(joined, name))
        return joined

    def heads(part):
        return op.transpose(op.reshape(part, ints(0, 0, H, D), True), ints(0, 2, 1, 3))

    for layer in range(config["n_layer"]):
        at = f"h.{layer}"
        qkv = op.split(linear(norm(x, f"{at}.ln_1"), f"{at}.attn.c_attn"), op.constant(np.int64(2)), 3)
        q, k, v = (heads(qkv.output(i)) for i in range(3))
        k, v = cached(k, f"past_key_values.{layer}.key"), cached(v, f"past_key_values.{layer}.value")
        attended = op.scaled_dot_product_attention(q, k, v, mask)
        joined = op.reshape(op.transpose(attended, ints(0, 2, 1, 3)), ints(0, 0, C), True)
        x = op.add(x, linear(joined, f"{at}.attn.c_proj"))
        wide = op.gelu(linear(norm(x, f"{at}.ln_2"), f"{at}.mlp.c_fc"), "tanh")
        x = op.add(x, linear(wide, f"{at}.mlp.c_proj"))
    last = op.gather(norm(x, "ln_f"), ints(-1), op.constant(np.int64(1)))
    head = op.constant(read("lm_head.weight")) if read.has("lm_head.weight") else wte
    logits = op.matmul(last, head, False, True)
    return openvino.Model([op.result(logits)], sinks, [ids, positions, beam], "gpt2")
