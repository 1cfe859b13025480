"""Several processes under mpiexec: the command line, scripts, and every way in which one of them may fail."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cgpt
from cgpt.distributed import mpi
from cgpt.errors import InputError
from cgpt.kernels import isa
from cgpt.models.synth import write

from support.batch_cases import line, records, text_of, write_lines
from support.synth_cases import GPT2

ROOT = Path(cgpt.__file__).parents[1]
NEEDED = [name for name, there in (("mpi4py", importlib.util.find_spec("mpi4py")), ("mpiexec", shutil.which("mpiexec")))
          if not there]  # fmt: skip
mpiexec = pytest.mark.skipif(bool(NEEDED), reason=f"{' and '.join(NEEDED)} not found")
GENERATE = [
    "-m",
    "cgpt",
    "generate",
    "-t",
    "1",
    "--seed",
    "10",
    "--temperature",
    "0.6",
    "--max-new-tokens",
    "20",
    "ROMEO:",
]
SCRIPT = """
import sys
import cgpt
from mpi4py import MPI
model = cgpt.load(sys.argv[1], 1, "exact", comm=MPI.COMM_WORLD)
"""


def start(*programs, **options):
    """A process of mpiexec, MPICH's or Open MPI's; programs: (number of ranks, its options, what the arguments of
    Python are)."""
    command = []
    for number, how, arguments in programs:
        command += [*([":"] if command else []), "-n", str(number), *how, sys.executable, *arguments]
    as_root = dict.fromkeys(("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"), "1")
    slots = {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}  # Open MPI's word for more ranks than cores
    environment = {**os.environ, **as_root, **slots, "PYTHONPATH": str(ROOT)}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen(["mpiexec", *command], env=environment, stdin=subprocess.DEVNULL, **options)


def run(*programs, timeout=60, **options):
    process = start(*programs, **options)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"it hangs: {process.communicate()}") from None
    return process.returncode, out, err


def alone(arguments, **env):
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=os.environ | env, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@mpiexec
@pytest.mark.parametrize("size", [2, 4])
def test_the_command_line_writes_what_one_process_writes(size):
    wanted = alone(GENERATE)
    assert wanted[0] == 0 and wanted[1]
    assert run((size, [], GENERATE)) == wanted


@mpiexec
def test_a_command_without_a_model_speaks_once():
    arguments = ["-m", "cgpt", "kernels"]
    assert run((2, [], arguments)) == alone(arguments)


@mpiexec
def test_warnings_come_once(tmp_path):
    shutil.copytree(Path(cgpt.__file__).parent / "demo" / "demo-gpt2", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    raw = file.read_bytes()
    begin = 8 + int.from_bytes(raw[:8], "little")
    more = {"more": {"dtype": "U8", "shape": [4], "data_offsets": [len(raw) - begin, len(raw) - begin + 4]}}
    header = json.dumps(json.loads(raw[8:begin]) | more).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + raw[begin:] + bytes(4))
    code, out, err = run((2, [], [*GENERATE, "--model", str(tmp_path / "model")]))
    assert (code, out, err.count("unknown tensors")) == (0, alone(GENERATE)[1], 1)


@mpiexec
def test_ranks_without_mpi4py_say_so_once():
    program = "import importlib.util, sys; importlib.util.find_spec = lambda name: None; from cgpt.cli.main import main"
    code, out, err = run((2, [], ["-c", f"{program}; sys.exit(main(['generate', 'x']))"]))
    assert (code, out, err.count("pip install 'cgpt[mpi]'")) == (2, "", 1)


@mpiexec
def test_a_command_that_loads_two_models():
    arguments = [
        "-m",
        "cgpt",
        "quality",
        "--model",
        "demo-gpt-oss",
        "--dense",
        "int8",
        "-t",
        "1",
        "--precision",
        "exact",
    ]
    assert run((2, [], arguments)) == alone(arguments)


@mpiexec
@pytest.mark.parametrize(
    "arguments, said",
    [
        (["generate", "--nonsense"], "required: PROMPT"),
        (["generate", "--model", "/nowhere", "x"], "/nowhere: no such"),
        (["generate", "--model", "demo-gpt-oss", "x"], "2 key/value heads, too few for 3 ranks"),
        (["batch", "--ray", "--", "in", "out"], "--ray gives each actor a model of its own"),
    ],
)
def test_what_rank_0_refuses_is_said_once_and_ends_all(arguments, said):
    code, out, err = run((3, [], ["-m", "cgpt", *arguments]))
    assert (code, out, err.count(said)) == (2, "", 1)


@mpiexec
def test_a_batch_goes_on_where_it_was_killed_and_has_each_line_once(tmp_path):
    pytest.importorskip("starlette")
    write_lines(tmp_path / "in", [line(f"{i}", f"ROMEO {i}:", max_tokens=40) for i in range(60)])
    how = ["-m", "cgpt", "batch", "-t", "1", "--precision", "exact", "--name", "demo", str(tmp_path / "in")]
    process, killed = start((2, [], [*how, str(tmp_path / "killed")])), tmp_path / "killed"
    while process.poll() is None and (not killed.exists() or killed.read_bytes().count(b"\n") < 5):
        time.sleep(0.002)
    process.kill()
    process.communicate()
    for _ in range(100):  # its ranks end a moment later
        code, _, err = run((2, [], [*how, str(killed)]))
        if "another process" not in err:
            break
        time.sleep(0.1)
    assert code == 0 and "60 of 60 lines" in err, err
    assert alone([*how, str(tmp_path / "one")])[0] == 0
    answers = [{one["custom_id"]: text_of(one) for one in records(path)} for path in (killed, tmp_path / "one")]
    assert answers[0] == answers[1] and len(records(killed)) == 60


@mpiexec
def test_a_script_goes_on_in_rank_0_alone():
    script = SCRIPT + "print(model.generate('ROMEO:', max_new_tokens=5).text, MPI.COMM_WORLD.size)"
    wanted = cgpt.load("demo-gpt2", 1, "exact").generate("ROMEO:", max_new_tokens=5).text
    assert run((3, [], ["-c", script, "demo-gpt2"])) == (0, f"{wanted} 3\n", "")


@mpiexec
def test_an_error_of_the_script_ends_all():
    code, out, err = run((2, [], ["-c", SCRIPT + "model.generate('x'); raise KeyError('mine')", "demo-gpt2"]))
    assert (code, out, err.count("KeyError: 'mine'")) == (1, "", 1)


@mpiexec
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_all(victim):
    script = SCRIPT + "print('ready', flush=True)\nwhile True: model.generate('ROMEO:')"
    name = "import os; os.write(1, b'%d %d\\n' % (MPI.COMM_WORLD.rank, os.getpid()))\n"
    process = start((2, [], ["-c", script.replace("model =", name + "model ="), "demo-gpt2"]))
    pids = {}
    while (line := process.stdout.readline()) != "ready\n":
        rank, pid = map(int, line.split())
        pids[rank] = pid
    os.kill(pids[victim], signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode and "signal" in (out + err).lower()  # as the launcher puts it
    for pid in pids.values():
        with pytest.raises(ProcessLookupError):
            for _ in range(100):  # until it has been reaped
                os.kill(pid, 0)
                time.sleep(0.05)


@mpiexec
def test_a_rank_that_fails_in_a_step_says_why_and_ends_all():
    failing = "if MPI.COMM_WORLD.rank: mpi.MPICommunicator.gather = lambda *_: [][1]\n"
    script = SCRIPT.replace("model =", "from cgpt.distributed import mpi\n" + failing + "model =")
    code, _, err = run((2, [], ["-c", script + "model.generate('x')", "demo-gpt2"]))
    assert code and "cgpt: error: rank 1 of 2 ends, and so do all: IndexError" in err


@mpiexec
def test_a_rank_with_another_checkpoint_is_refused(tmp_path):
    for seed in (0, 1):
        write(GPT2, tmp_path / f"{seed}" / "model", seed=seed)
    arguments = ["-m", "cgpt", "generate", "-t", "1", "--model", "model", "x"]
    code, _, err = run(*((1, ["-wdir", str(tmp_path / f"{seed}")], arguments) for seed in (0, 1)))
    assert code == 2 and err.count("rank 1 of 2 has another checkpoint in model") == 1


@mpiexec
@pytest.mark.skipif("avx2" not in isa.available(), reason="this machine has one level")
def test_the_best_kernels_that_all_have_are_taken():
    programs = [(1, [], GENERATE), (1, ["env", "CGPT_ISA=ref"], GENERATE)]
    code, out, err = run(*programs)
    wanted = alone(GENERATE, CGPT_ISA="ref")
    assert (code, out) == wanted[:2]
    assert err.count("all ranks use the kernels of ref") == 1 and f"rank 0 has {isa.available()[-1]}" in err


@mpiexec
def test_ranks_that_wait_leave_the_processor_alone():
    waiting = """
import time
everyone = model.transformer.ranks.on_all
model.generate("x", max_new_tokens=3)
before = everyone(time.process_time)
time.sleep(2)
print(*(after - one for one, after in zip(before, everyone(time.process_time), strict=True)))
"""
    code, out, err = run((2, [], ["-c", SCRIPT + waiting, "demo-gpt2"]))
    assert code == 0, err
    assert all(float(seconds) < 0.2 for seconds in out.split()), out


@mpiexec
def test_much_is_gathered_in_little_memory():
    """What a rank needs for it counts as no scratch of a step, where experts are streamed."""
    script = """
import numpy as np
from mpi4py import MPI
from cgpt.distributed.mpi import MPICommunicator
ranks = MPICommunicator(MPI.COMM_WORLD)
bounds = (0, 3001, 6000, 9002)
mine = slice(bounds[ranks.rank], bounds[ranks.rank + 1])
for T in (1, 2, 1001):
    wanted = np.random.default_rng(T).random((T, 9002), np.float32)
    y = np.zeros_like(wanted)
    y[:, mine] = wanted[:, mine]
    ranks.gather(y, bounds)
    assert np.array_equal(y, wanted)
    y[:, bounds[1]:] = 0
    ranks.collect(y if ranks.rank == 0 else np.ascontiguousarray(wanted[:, mine]), bounds)
    assert ranks.rank or np.array_equal(y, wanted)
assert ranks._spare.nbytes <= 16 << 20, ranks._spare.nbytes
"""
    assert run((3, [], ["-c", script])) == (0, "", "")


@mpiexec
def test_experts_from_the_disk():
    arguments = ["-m", "cgpt", "generate", "--model", "demo-gpt-oss", "-t", "1", "--temperature", "0", "2+2"]
    code, out, _ = run((2, [], [*arguments, "--memory", "8GB"]))
    assert (code, out) == alone(arguments)[:2]


def test_importing_cgpt_does_not_import_mpi4py():
    code, out, err = alone(["-c", "import cgpt, sys; print('mpi4py' in sys.modules)"])
    assert (code, out) == (0, "False\n"), err


def test_a_rank_that_open_mpi_has_bound_to_one_core_says_so(monkeypatch):
    monkeypatch.delenv(mpi.OPEN_MPI, raising=False)
    assert mpi.binding_advice(1, 64, 2) is None  # somebody else did it, who knows why
    monkeypatch.setenv(mpi.OPEN_MPI, "2")
    assert "one of 64 cores; give mpiexec --bind-to none" in mpi.binding_advice(1, 64, 2)
    assert mpi.binding_advice(32, 64, 2) is None and mpi.binding_advice(1, 2, 2) is None


@pytest.mark.parametrize("names", mpi.LAUNCHERS)
def test_launchers_are_noticed(monkeypatch, names):
    for name in (name for pair in mpi.LAUNCHERS for name in pair):
        monkeypatch.delenv(name, raising=False)
    assert mpi.launched() == (0, 1) and mpi.world() is None
    for name, value in zip(names, ("1", "3"), strict=True):
        monkeypatch.setenv(name, value)
    assert mpi.launched() == (1, 3)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"3 processes, and mpi4py.*pip install 'cgpt\[mpi\]'"):
        mpi.world()
