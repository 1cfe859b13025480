"""Kernels need little stack: threads of musl and macOS have 128 to 512 KiB,
OMP_STACKSIZE and ulimit -s can give less."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from cgpt.kernels import _kernels

from support.kernel_cases import Weights, activations, context, linear, tensor, use_level

KIB = 256
DTYPES = ("F32", "F16", "BF16", "BF16_PACKED", "MXFP4", "INT8")


def run_linear(precision, threads):
    for dtype in DTYPES:
        for N, K in ((70, 96), (33, 1024)):
            for T in (1, 7, 13, 60):
                linear(Weights(dtype, (N, K)).matrix(), activations(T, K), T, exact=precision, threads=threads)


def run_moe(precision, threads):
    E, C, width, T, k = 1024, 64, 32, 40, 4
    for dtype in DTYPES:
        gate_up, down = Weights(dtype, (E, 2 * width, C)).matrix(), Weights(dtype, (E, C, width)).matrix()
        index = np.arange(T * k, dtype=np.int32).reshape(T, k)
        index[: T // 2] = np.arange(k)  # some experts have many tokens, many have one
        out, x, weight = tensor(np.zeros((T, C))), tensor(activations(T, C)), tensor(np.full((T, k), 0.25))
        _kernels.moe(context(precision, threads), out, x, index, weight, gate_up, down, 1.7, 7.0, T)


def run_attention(precision, threads):
    H, G = 8, 2
    for dtype, numpy_dtype in (("F32", np.float32), ("F16", np.float16), ("BF16", np.uint16)):
        for D in (64, 512):
            cache = _kernels.LayerCache(*(np.zeros(s, numpy_dtype) for s in _kernels.kv_shapes(40, G, D)), dtype)
            for start, T in ((0, 45), (45, 1), (46, 1200), (1246, 1)):
                qkv, out = np.ones((T, (H + 2 * G) * D), np.float32), np.zeros((T, H * D), np.float32)
                slices = [(cache, 0, start, T)]
                _kernels.attention(context(precision, threads), tensor(out), tensor(qkv), slices, H, scale=0.1)


def run_the_rest(precision, threads):
    for dtype, array in (("F32", np.float32), ("F16", np.float16), ("BF16", np.uint16)):
        values = np.ones((130, 200), array)
        for transposed in (False, True):
            _kernels.quantize_int8(values, dtype, threads, transposed=transposed)
        _kernels.pack_bf16(values, dtype, threads)
        _kernels.transpose(np.zeros((200, 130), array), dtype, values, dtype, threads)
    _kernels.mxfp4_dequantize(np.zeros((9, 3, 16), np.uint8), np.zeros((9, 3), np.uint8))


def run(level, threads):
    """Every kernel with much to keep, in a thread with a small stack and, where threads > 1, on OpenMP's too."""
    use_level(level)
    failed = []

    def work():
        try:
            for precision in _kernels.PRECISIONS:
                for part in (run_linear, run_moe, run_attention, run_the_rest):
                    part(precision, threads)
        except BaseException as error:
            failed.append(error)

    threading.stack_size(KIB * 1024)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    print("fine")


@pytest.mark.parametrize("threads", [1, 2])
def test_a_small_stack_is_enough(level, threads):
    environment = os.environ | {"OMP_STACKSIZE": f"{KIB}k", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    program = f"import {__name__} as test; test.run({level!r}, {threads})"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "fine"), f"exit {done.returncode}: {done.stderr[-2000:]}"
