"""onnxruntime, on a GPT-2 graph of its own fused operators (as its model builders emit), written here from the weights.

The cache is a buffer that GroupQueryAttention appends to in place. "int8" is quantize_dynamic's: weights per column,
activations by their range at run time; "int8-nbits" is MatMulNBits with 8 bits.
"""

import numpy as np

from peer_engines.base import Engine, Skip


class OnnxRuntime(Engine):
    packages = ("onnxruntime", "onnx")
    settings = {
        "gpt2": {
            "f32": "f32, products and cache f32",
            "int8": "int8 by columns, products of 8-bit activations, cache f32",
            "int8-nbits": "int8 in groups of 32, products of 8-bit activations, cache f32",
        },
        "gpt_oss": {"int4": "int4"},
    }

    def prepare(self, work):
        if self.config["model_type"] != "gpt2":
            raise Skip("has no MXFP4 on a CPU; its own int4 would be other weights")
        f32, int8 = work / "onnx-f32" / "model.onnx", work / f"onnx-{self.precision}" / "model.onnx"
        if not f32.exists():
            write_onnx(self.checkpoint, self.config, f32)
        if self.precision == "int8-nbits" and not int8.exists():
            import onnx
            from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

            int8.parent.mkdir(exist_ok=True)
            quantizer = MatMulNBitsQuantizer(
                onnx.load(f32), bits=8, block_size=32, is_symmetric=True, accuracy_level=4
            )  # 4: activations are rounded to 8 bits
            quantizer.process()
            quantizer.model.save_model_to_file(str(int8), True)
        if not int8.exists():
            from onnxruntime.quantization import QuantType, quantize_dynamic

            int8.parent.mkdir(exist_ok=True)
            quantize_dynamic(
                f32,
                int8,
                per_channel=True,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=["MatMul"],
                use_external_data_format=True,
                reduce_range=not has_vnni(),
                extra_options={"DefaultTensorType": 1},  # float32: it cannot see through com.microsoft's operators
            )
        return int8

    def load(self, path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.shape: list[int] = []

    def reset(self, sequences) -> None:
        heads = self.config["n_head"]
        shape = [sequences, heads, self.context, self.config["n_embd"] // heads]
        self.position = 0
        if shape != self.shape:
            self.shape = shape
            self.bind()

    def bind(self) -> None:
        import onnxruntime

        self.binding = self.session.io_binding()
        self.binding.bind_output("logits")
        for layer in range(self.config["n_layer"]):
            for part in ("key", "value"):
                buffer = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(self.shape, np.float32))
                self.binding.bind_ortvalue_input(f"past_{part}_{layer}", buffer)
                self.binding.bind_ortvalue_output(f"present_{part}_{layer}", buffer)

    def step(self, ids):
        ids = np.array(ids, np.int64)
        positions = self.position + np.arange(ids.shape[1])[None].repeat(len(ids), 0)
        self.position += ids.shape[1]
        self.binding.bind_cpu_input("input_ids", ids)
        self.binding.bind_cpu_input("position_ids", positions)
        self.binding.bind_cpu_input("last", np.full(len(ids), self.position - 1, np.int32))
        self.binding.bind_cpu_input("total", np.array(self.position, np.int32))
        self.session.run_with_iobinding(self.binding)
        return self.binding.get_outputs()[0].numpy()


def has_vnni() -> bool:
    """Without it products of two bytes are added in 16 bits, which 8-bit weights overflow: 7 bits must do."""
    with open("/proc/cpuinfo") as file:
        return "_vnni" in file.read()


def write_onnx(checkpoint, config: dict, out) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from peer_engines.checkpoint import Reader

    read = Reader(checkpoint)
    heads, eps = config["n_head"], config["layer_norm_epsilon"]
    nodes, weights, inputs, outputs = [], {}, [], []

    def weight(name: str) -> str:
        if name not in weights:
            weights[name] = numpy_helper.from_array(read(read.prefix + name), name)
        return name

    def node(op: str, arguments: list[str], results: list[str], domain: str = "", **attributes) -> str:
        nodes.append(helper.make_node(op, arguments, results, f"{op}_{len(nodes)}", domain=domain, **attributes))
        return results[0]

    def ms(op: str, arguments: list[str], results: list[str], **attributes) -> str:
        return node(op, arguments, results, "com.microsoft", **attributes)

    def matmul(x: str, name: str) -> str:
        return node("MatMul", [x, weight(f"{name}.weight")], [f"{name}.out"])

    def norm(x: str, branch: str, bias: str, name: str) -> tuple[str, str]:
        """(the norm of x + branch + bias, that sum)"""
        arguments = [x, branch, weight(f"{name}.weight"), weight(f"{name}.bias"), weight(bias)]
        ms("SkipLayerNormalization", arguments, [name, "", "", f"{name}.sum"], epsilon=eps)
        return name, f"{name}.sum"

    node("Gather", [weight("wte.weight"), "input_ids"], ["tokens"])
    node("Gather", [weight("wpe.weight"), "position_ids"], ["positions"])
    x = node("Add", ["tokens", "positions"], ["x"])
    first = [x, weight("h.0.ln_1.weight"), weight("h.0.ln_1.bias")]
    h = node("LayerNormalization", first, ["h.0.ln_1"], epsilon=eps)
    for layer in range(config["n_layer"]):
        at, final = f"h.{layer}", layer + 1 == config["n_layer"]
        qkv = node("Add", [matmul(h, f"{at}.attn.c_attn"), weight(f"{at}.attn.c_attn.bias")], [f"{at}.qkv"])
        cache = [f"{kind}_{part}_{layer}" for kind in ("past", "present") for part in ("key", "value")]
        shape = ["batch", heads, "context", config["n_embd"] // heads]
        inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in cache[:2]]
        outputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in cache[2:]]
        arguments = [qkv, "", "", *cache[:2], "last", "total"]
        attended = [f"{at}.attended", *cache[2:]]
        attended = ms("GroupQueryAttention", arguments, attended, num_heads=heads, kv_num_heads=heads)
        h, x = norm(x, matmul(attended, f"{at}.attn.c_proj"), f"{at}.attn.c_proj.bias", f"{at}.ln_2")
        wide = [matmul(h, f"{at}.mlp.c_fc"), weight(f"{at}.mlp.c_fc.bias")]
        wide = ms("FastGelu", wide, [f"{at}.gelu"])
        after = "ln_f" if final else f"h.{layer + 1}.ln_1"
        h, x = norm(x, matmul(wide, f"{at}.mlp.c_proj"), f"{at}.mlp.c_proj.bias", after)
    weights["end"] = numpy_helper.from_array(np.array(-1), "end")
    own = read.has("lm_head.weight")
    head = np.ascontiguousarray(read("lm_head.weight" if own else read.prefix + "wte.weight").T)
    weights["head"] = numpy_helper.from_array(head, "head")
    node("MatMul", [node("Gather", [h, "end"], ["h_last"], axis=1), "head"], ["logits"])

    ids = [
        helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "tokens"]) for n in ("input_ids", "position_ids")
    ]
    counts = [("last", ["batch"]), ("total", [])]
    inputs = ids + [helper.make_tensor_value_info(n, TensorProto.INT32, shape) for n, shape in counts] + inputs
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "V"]), *outputs]
    graph = helper.make_graph(nodes, "gpt2", inputs, outputs, list(weights.values()))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    out.parent.mkdir(exist_ok=True)
    onnx.save(model, out, save_as_external_data=True, location="model.data")
