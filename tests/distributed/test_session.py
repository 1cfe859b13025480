"""Several ranks, as threads of this process: the bits of one, whatever is done with its sequences."""

import os
import signal
import threading

import numpy as np
import pytest

import cgpt
from cgpt import loading
from cgpt.errors import CheckpointError, InputError, NumericsError
from cgpt.generation.engine import Engine
from cgpt.generation.request import Request
from cgpt.generation.sampling import SamplingParams
from cgpt.loading import DENSE
from cgpt.models.partition import OUTPUTS, split
from cgpt.models.streaming import MemoryBudget
from cgpt.models.synth import write

from support.synth_cases import GPT2, GPT_OSS, ORIGINAL, PLAIN
from support.thread_ranks import ThreadRanks

MODELS = {"gpt2": ("demo-gpt2", 3), "gpt-oss": ("demo-gpt-oss", 2)}  # and ranks: 5 heads as 1 + 2 + 2


@pytest.fixture(params=MODELS)
def pair(request):
    """A model of one process, and the same of several ranks."""
    name, size = MODELS[request.param]
    with cgpt.load(name, 1, "exact") as one, ThreadRanks(size) as ranks, ranks.load(name, 1, "exact") as several:
        yield one, several
        assert not ranks.board.aborts and not ranks.errors


def ids_of(model, length, seed=0):
    return np.random.default_rng(seed).integers(0, model.vocab_size, length)


def assert_same_bits(one, other):
    assert one.dtype == other.dtype and one.tobytes() == other.tobytes()


# ------------------------------------------------------------------------------------------------ the partition


class _Rank:
    def __init__(self, rank, size):
        self.rank, self.size = rank, size


@pytest.mark.parametrize(
    "outputs, size, unit", [(8, 3, 1), (5, 2, 1), (2880, 3, OUTPUTS), (50257, 4, OUTPUTS), (40, 4, OUTPUTS)]
)
def test_a_split_is_even_and_whole(outputs, size, unit):
    splits = [split(outputs, _Rank(rank, size), unit) for rank in range(size)]
    assert [part.start for part in splits] == list(splits[0].bounds[:-1])
    assert [i for part in splits for i in range(outputs)[part.rows()]] == list(range(outputs))
    counts = [part.count for part in splits]
    assert max(counts) - min(counts) <= 2 * unit and min(counts) > 0
    assert all(part.start % unit == 0 for part in splits) or outputs < unit * size


def test_one_process_has_all():
    assert split(7, None).rows() == slice(0, 7)


def random_config(rng, kind):
    """A config of one of the layouts, whose sizes nobody chose: few divide evenly."""
    pick = lambda *values: int(rng.choice(values))  # noqa: E731
    if kind == "gpt2":
        heads = pick(4, 5, 6, 7, 12)
        sizes = dict(n_head=heads, n_embd=heads * pick(6, 8, 20), n_layer=pick(1, 2), vocab_size=pick(61, 300, 517))
        return GPT2 | sizes | dict(n_inner=pick(33, 100, 256), tie_word_embeddings=bool(pick(0, 1)))
    heads = pick(4, 5, 8)
    sizes = dict(num_key_value_heads=heads, num_attention_heads=heads * pick(1, 2, 3), head_dim=pick(8, 16, 20))
    sizes |= dict(hidden_size=32 * pick(1, 2, 5), intermediate_size=32 * pick(1, 2, 3), num_hidden_layers=2)
    sizes |= dict(vocab_size=pick(61, 300, 517), sliding_window=pick(5, 16))
    base = {"mxfp4": GPT_OSS, "plain": PLAIN, "original": ORIGINAL}[kind]
    experts = "num_experts" if kind == "original" else "num_local_experts"
    return (
        base
        | sizes
        | {experts: pick(4, 7)}
        | ({} if kind == "original" else dict(layer_types=GPT_OSS["layer_types"][:2]))
    )


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("kind", ["gpt2", "mxfp4", "plain", "original"])
def test_random_models_have_the_same_bits(tmp_path, kind, seed):
    rng = np.random.default_rng([seed, len(kind)])
    write(random_config(rng, kind), tmp_path / "model", seed=seed)
    how = dict(precision=["exact", "auto", "int8"][seed % 3], dense=[None, *DENSE][seed % 5])
    one = cgpt.load(tmp_path / "model", 1, **how)
    ids = ids_of(one, 60)
    for size in (2, int(rng.choice([3, 4]))):
        with ThreadRanks(size) as ranks:
            several = ranks.load(tmp_path / "model", 1, **how)
            assert_same_bits(one.logits(ids), several.logits(ids))
            assert_same_bits(one.score(ids), several.score(ids))
            assert_same_bits(one.hidden(ids), several.hidden(ids))
        assert not ranks.board.aborts


# ------------------------------------------------------------------------------------------------ steps, sequences


def test_chunks_batches_and_undone_steps(pair):
    found = []
    for model in pair:
        step, ids = model.transformer.step, ids_of(model, 80)
        caches = [model.transformer.new_cache(100, slack) for slack in (0, 8, 8)]
        logits = [step([(caches[0], ids[:50])]), step([(caches[0], ids[50:53]), (caches[1], ids[:9])], rows="all")]
        logits += [step([(cache, ids[70 + i : 71 + i]) for i, cache in enumerate(caches)]) for _ in range(3)]
        caches[1].truncate(caches[1].position - 4)
        logits += [step([(caches[1], ids[:1])]), step([(caches[2], ids[:5])], head=False)]
        found.append(logits)
    for one, several in zip(*found, strict=True):
        assert_same_bits(one, several)


def test_snapshots_and_what_resumes_at_them(pair):
    found = []
    for model in pair:
        step, ids = model.transformer.step, ids_of(model, 90)
        source = model.transformer.new_cache(90, 4)
        step([(source, ids[:60])])
        snapshot, earlier = source.snapshot(), source.snapshot(58)
        step([(source, ids[60:70])])
        resumed = [model.transformer.new_cache(90, 4) for _ in range(2)]
        for cache, at in zip(resumed, (snapshot, earlier), strict=True):
            cache.resume(source, at)
        del source, snapshot
        found.append([step([(cache, ids[70:75])], rows="all") for cache in resumed])
    for one, several in zip(*found, strict=True):
        assert_same_bits(one, several)


def test_a_step_that_fails_at_its_end_is_undone_on_all(pair):
    """Rank 0 alone sees that logits are not finite; the others have taken the same ids by then."""
    found = []
    for model in pair:
        transformer, ids = model.transformer, ids_of(model, 40)
        good, bad = transformer.new_cache(60), transformer.new_cache(60)
        transformer.step([(good, ids[:20]), (bad, ids[:3])])
        require_finite = transformer.require_finite

        def refuse(out, slices, cache=bad):
            raise NumericsError("as asked for", (cache,))

        transformer.require_finite = refuse
        with pytest.raises(NumericsError):
            transformer.step([(good, ids[20:30]), (bad, ids[3:5])])
        transformer.require_finite = require_finite
        good.rollback()
        found.append(transformer.step([(good, ids[20:31])], rows="all"))
        with pytest.raises(InputError, match="interrupted"):
            transformer.step([(bad, ids[:1])])
    assert_same_bits(*found)


def test_an_interrupt_comes_when_a_step_is_done_on_all_or_on_none(pair):
    """Ctrl-C between the end of the ranks' work and the moment at which rank 0 has noted it."""
    found = []
    for model in pair:
        transformer, ids = model.transformer, ids_of(model, 40)
        cache = transformer.new_cache(60)
        transformer.step([(cache, ids[:20])])
        end_step = cache.end_step
        cache.end_step = lambda tokens, end=end_step: [signal.raise_signal(signal.SIGINT), end(tokens)]
        with pytest.raises(KeyboardInterrupt):
            transformer.step([(cache, ids[20:24])])
        cache.end_step = end_step
        cache.rollback()
        found.append(transformer.step([(cache, ids[cache.position : 31])]))
    assert_same_bits(*found)


def test_bad_input_reaches_nobody_else(pair):
    one, several = pair
    cache = several.transformer.new_cache(8)
    for ids, kind in (([], InputError), ([several.vocab_size], InputError), ([0] * 9, InputError)):
        with pytest.raises(kind):
            several.transformer.step([(cache, ids)])
    ids = ids_of(one, 8)
    mine = one.transformer.new_cache(8)
    assert_same_bits(one.transformer.step([(mine, ids)]), several.transformer.step([(cache, ids)]))


def test_texts_prefixes_and_drafts(pair):
    texts = []
    for model in pair:
        prefixes = cgpt.PrefixCache(model)
        prompt = ids_of(model, 40).tolist()
        how = dict(max_new_tokens=24, temperature=0.7, seed=3, ignore_eos=True, prefix_cache=prefixes)
        done = [model.generate([prompt, prompt[:30], prompt[5:]], **how)]
        done += [model.generate([prompt + [1, 2], prompt[:20]], **how)]
        done += [[model.generate(prompt * 2, prompt_lookup_num_tokens=4, **(how | {"temperature": 0}))]]
        texts.append([one.ids for several in done for one in several])
        assert prefixes.num_reused > 60
    assert texts[0] == texts[1]


def test_requests_of_an_engine_one_of_them_cancelled(pair):
    texts = []
    for model in pair:
        params = SamplingParams(max_new_tokens=30, temperature=0.8, seed=4, ignore_eos=True)
        requests = [Request(model, ids_of(model, 10 + 7 * i, i).tolist(), params) for i in range(4)]
        with Engine(model) as engine:
            job = engine.submit(requests)
            job.cancel(1)
            for _ in job:
                pass
        texts.append([request.ids for i, request in enumerate(requests) if i != 1])
    assert texts[0] == texts[1]


def test_threads_that_step_at_once(pair):
    one, several = pair
    wanted = one.logits(ids_of(one, 60))
    found = []
    threads = [threading.Thread(target=lambda: found.append(several.logits(ids_of(one, 60)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for logits in found:
        assert_same_bits(wanted, logits)


def test_another_precision_of_the_same_weights(pair):
    one, several = (model.at_precision("int8") for model in pair)
    ids = ids_of(one, 50)
    assert_same_bits(one.logits(ids), several.logits(ids))
    several.close()
    assert_same_bits(pair[0].logits(ids), pair[1].logits(ids))


def test_two_models_at_once():
    with ThreadRanks(2) as ranks:
        models = [ranks.load(name, 1) for name in ("demo-gpt2", "demo-gpt-oss")]
        for model in models:
            ids = ids_of(model, 30)
            assert_same_bits(cgpt.load(model.directory, 1).logits(ids), model.logits(ids))


def test_what_is_gone_on_rank_0_is_gone_on_all(pair):
    _, several = pair
    session = several.transformer.ranks
    others = len(session.communicator.board.inboxes) - 1
    ids = ids_of(several, 10)
    for _ in range(20):
        several.logits(ids)
    cache = several.transformer.new_cache(4)
    several.transformer.step([(cache, ids[:2])])
    objects = several.transformer.ranks.communicator.board.sessions[1:]
    assert len(objects) == others and all(len(one._objects) <= 3 for one in objects)  # the model, and a cache or two


# ------------------------------------------------------------------------------------------------ experts from disk


def test_streamed_experts_have_the_same_bits(monkeypatch):
    monkeypatch.setattr(MemoryBudget, "slots", lambda self, tokens: 25)
    resident, ids = cgpt.load("demo-gpt-oss", 1, "auto"), np.random.default_rng(0).integers(0, 512, 1300)
    with ThreadRanks(2) as ranks:
        several = ranks.load("demo-gpt-oss", 1, "auto", memory="64GB")
        store = several.transformer.streaming.store
        assert store.slot_bytes < cgpt.load("demo-gpt-oss", memory="64GB").transformer.streaming.store.slot_bytes
        for length in (1, 9, 1300):
            assert_same_bits(resident.logits(ids[:length]), several.logits(ids[:length]))
        assert store.stats.misses > 100


# ------------------------------------------------------------------------------------------------ refusals


def test_more_ranks_than_heads_are_refused():
    with ThreadRanks(3) as ranks:
        with pytest.raises(InputError, match="2 key/value heads, too few for 3 ranks"):
            ranks.load("demo-gpt-oss")


def test_what_fails_to_load_on_one_rank_fails_on_all_and_another_loads(tmp_path):
    with ThreadRanks(2) as ranks:
        with pytest.raises(CheckpointError, match="no such"):
            ranks.load(tmp_path / "none")
        assert ranks.load("demo-gpt2", 1).vocab_size


@pytest.fixture
def checkpoints_of_ranks(tmp_path, monkeypatch):
    """The directories of two ranks, each of which finds its own by whatever name is given."""
    places = [tmp_path / f"of rank {rank}" for rank in (0, 1)]
    locate, main = loading.locate, threading.main_thread()
    mine = lambda *_: locate(places[int(threading.current_thread() is not main)])  # noqa: E731
    monkeypatch.setattr(loading, "locate", mine)
    return places


def test_a_checkpoint_that_one_rank_lacks_is_said_on_rank_0(checkpoints_of_ranks):
    write(GPT2, checkpoints_of_ranks[0])
    with ThreadRanks(2) as ranks:
        with pytest.raises(CheckpointError, match="rank 1 of 2: .*of rank 1: no such"):
            ranks.load("model")
        write(GPT2, checkpoints_of_ranks[1])
        assert ranks.load("model").vocab_size == GPT2["vocab_size"]


def test_a_rank_with_another_checkpoint_is_refused(checkpoints_of_ranks):
    for seed, place in enumerate(checkpoints_of_ranks):
        write(GPT2, place, seed=seed)
    with ThreadRanks(2) as ranks:
        with pytest.raises(CheckpointError, match="rank 1 of 2 has another checkpoint"):
            ranks.load("model")
    assert not ranks.board.aborts


def test_a_rank_with_another_version_is_refused():
    ranks = ThreadRanks(2)
    older, exchange = ranks.communicators[1], ranks.communicators[1].exchange
    of_version = lambda mine: isinstance(mine, tuple) and mine[0] == cgpt.__version__  # noqa: E731
    older.exchange = lambda mine: exchange(("0.1", mine[1]) if of_version(mine) else mine)
    with pytest.raises(InputError, match="rank 0 has cgpt .*, rank 1 has 0.1"):
        with ranks:
            pass


def test_a_rank_that_fails_within_a_step_ends_all():
    with ThreadRanks(2) as ranks:
        model = ranks.load("demo-gpt2", 1)
        ranks.communicators[1].gather = lambda y, bounds: 1 / 0
        ranks.sessions[1].gather = ranks.communicators[1].gather
        with pytest.raises(threading.BrokenBarrierError):
            model.logits([1, 2, 3])
    assert len(ranks.board.aborts) == 2 and "ZeroDivisionError" in ranks.board.aborts[0]
    assert ranks.board.aborts[0].startswith("rank 1 of 2 ends")


def test_an_interrupt_while_it_loads_ends_all():
    def interrupt(done, total):
        raise KeyboardInterrupt

    with ThreadRanks(2) as ranks:
        with pytest.raises(KeyboardInterrupt):
            ranks.load("demo-gpt2", 1, progress=interrupt)
    assert ranks.board.aborts[0] == "rank 0 of 2 ends, and so do all: KeyboardInterrupt"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_of_rank_0_is_no_rank(pair):
    """What it sent would come between what its parent and the others say to each other."""
    one, several = pair
    if not (child := os.fork()):
        status = 1
        try:
            several.logits([1, 2])
        except InputError as problem:
            status = 0 if "a fork" in str(problem) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert_same_bits(one.logits([1, 2]), several.logits([1, 2]))


def test_what_needs_one_process_is_refused(tmp_path):
    with ThreadRanks(2) as ranks:
        model = ranks.load("demo-gpt2", 1)
        with pytest.raises(InputError, match="one process"):
            model.inspect("ROMEO:", "hidden")
        with pytest.raises(InputError, match="prefix cache on the disk"):
            cgpt.PrefixCache(model, directory=tmp_path)
        assert model.generate("ROMEO:", max_new_tokens=4).text


def test_comm_must_be_a_communicator():
    with pytest.raises(InputError, match="mpi4py, as MPI.COMM_WORLD, not a str"):
        cgpt.load("demo-gpt2", comm="world")


def test_a_session_that_has_ended_says_so():
    with ThreadRanks(2) as ranks:
        model = ranks.load("demo-gpt2", 1)
    with pytest.raises(InputError, match="ended"):
        model.logits([1, 2])
