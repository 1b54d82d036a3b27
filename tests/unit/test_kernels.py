"""Kernels give what torch's operators give, row by row, and an engine does without them where they do not compile."""

import functools
import importlib.util
import math
import sys
import tempfile
import threading
from types import SimpleNamespace

import pytest
import structlog
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plaudit.engine import kernels, sampling
from plaudit.engine.kernels import array
from plaudit.engine.sampling import draw
from plaudit.types import Sampling
from torch.nn.functional import rms_norm, silu

made = kernels.load()
compiled = pytest.mark.skipif(made is None, reason="kernels are not compiled here")
# A row alone, more rows than a register has places, sizes that are no multiple of anything.
ROWS, SIZES = st.integers(1, 40), st.integers(1, 130)


def _random(*shape, seed=0, spread=3.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * spread


@compiled
@settings(max_examples=30, deadline=None)
@given(ROWS, SIZES, st.integers(0, 2**16))
def test_norms_and_gates_are_those_of_torch(rows, size, seed):
    hidden, more, weight = _random(rows, size, seed=seed), _random(rows, size, seed=seed + 1), _random(size, seed=seed)
    normed, total = torch.empty_like(hidden), hidden.clone()
    made.norm(array(hidden), array(weight), 1e-5, array(normed))
    assert torch.allclose(normed, rms_norm(hidden, (size,), weight, 1e-5), atol=1e-5, rtol=1e-5)
    made.add_norm(array(total), array(more), array(weight), 1e-5, array(normed))
    assert torch.equal(total, hidden + more)
    assert torch.allclose(normed, rms_norm(total, (size,), weight, 1e-5), atol=1e-5, rtol=1e-5)
    made.add(array(total), array(more))
    assert torch.equal(total, hidden + more + more)
    both, gated = _random(rows, 2 * size, seed=seed, spread=30.0), torch.empty(rows, size)
    made.gate(array(both), array(gated))
    assert torch.allclose(gated, silu(both[:, :size]) * both[:, size:], atol=1e-5, rtol=1e-5)


@compiled
@settings(max_examples=30, deadline=None)
@given(ROWS, st.integers(1, 5), st.integers(1, 3), st.integers(1, 40), st.integers(0, 2**16))
def test_heads_turn_by_the_angles_of_their_positions(rows, heads, rest, half, seed):
    size = 2 * half
    qkv = _random(rows, (heads + rest) * size, seed=seed)
    cos, sin = _random(50, size, seed=seed + 1), _random(50, size, seed=seed + 2)
    at = torch.randint(50, (rows,), generator=torch.Generator().manual_seed(seed))
    by_head = qkv.view(rows, heads + rest, size)
    wanted = by_head.clone()
    wanted[:, :heads] = by_head[:, :heads] * cos[at][:, None] + by_head[:, :heads].roll(half, -1) * sin[at][:, None]
    made.turn(array(qkv), array(cos), array(sin), array(at), heads)
    assert torch.allclose(by_head, wanted, atol=1e-5, rtol=1e-5)


def _attention(rows, groups, shared, half, seed, only=None, threads=1):
    """Rows in places of a larger block, by the kernel and by torch; `only`: one of them by itself."""
    drawn, size, heads = torch.Generator().manual_seed(seed), 2 * half, groups * shared
    at = torch.randint(0, 70, (rows,), generator=drawn)
    places = torch.randperm(rows + 2, generator=drawn)[:rows]
    qkv = _random(rows, heads + 2 * groups, size, seed=seed, spread=1.0)
    keys, values = (_random(rows + 2, groups, 70, size, seed=seed + more, spread=1.0) for more in (1, 2))
    wanted = torch.empty(rows, heads, size)
    for row in range(rows):
        own = keys[places[row]].clone(), values[places[row]].clone()
        for stored, fresh in zip(own, (qkv[row, heads : heads + groups], qkv[row, heads + groups :]), strict=True):
            stored[:, at[row]] = fresh
        seen = [each[:, : at[row] + 1].repeat_interleave(shared, dim=0) for each in own]
        wanted[row] = torch.softmax(qkv[row, :heads, None] @ seen[0].mT * 0.3, dim=-1).matmul(seen[1])[:, 0]
    found, chosen = torch.full((rows, heads * size), torch.nan), slice(only, None if only is None else only + 1)
    which = torch.arange(rows)[chosen].contiguous()
    flat = qkv.view(rows, -1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    made.attend(
        *(array(each) for each in (flat, which, places[chosen].contiguous(), at, keys, values)), 0.3, array(found)
    )
    torch.set_num_threads(before)
    return found.view(rows, heads, size), wanted


@compiled
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 3), st.integers(1, 4), st.integers(1, 33), st.integers(0, 2**16))
def test_attention_of_a_step_is_torchs_and_of_each_row_by_itself(rows, groups, shared, half, seed):
    found, wanted = _attention(rows, groups, shared, half, seed)
    assert torch.allclose(found, wanted, atol=1e-5, rtol=1e-4)
    alone, _ = _attention(rows, groups, shared, half, seed, only=rows - 1)
    assert torch.equal(alone[rows - 1], found[rows - 1])
    assert alone[: rows - 1].isnan().all()
    assert torch.equal(_attention(rows, groups, shared, half, seed, threads=3)[0], found)


@compiled
@settings(max_examples=15, deadline=None)
@given(ROWS, SIZES, st.integers(0, 2**16))
def test_a_rows_bits_depend_on_nothing_beside_it(rows, size, seed):
    both, weight = _random(rows, 2 * size, seed=seed), _random(size, seed=seed)
    hidden = both[:, :size].contiguous()
    gated, normed = torch.empty_like(hidden), torch.empty_like(hidden)
    made.gate(array(both), array(gated))
    made.norm(array(hidden), array(weight), 1e-5, array(normed))
    alone = torch.empty(1, size)
    for row in range(rows):
        made.gate(array(both[row : row + 1].clone()), array(alone))
        assert torch.equal(alone[0], gated[row])
        made.norm(array(hidden[row : row + 1].clone()), array(weight), 1e-5, array(alone))
        assert torch.equal(alone[0], normed[row])


@compiled
@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 700),
    st.lists(st.sampled_from([0.0, 1.0, 0.3, 2.0]), min_size=6, max_size=6),
    st.sampled_from([None, math.nan, -math.nan, math.inf, -math.inf]),
    st.integers(0, 2**16),
)
def test_a_draw_is_torchs(rows, vocabulary, temperatures, strange, seed):
    logits, uniforms = _random(rows, vocabulary, seed=seed), torch.rand(rows, generator=torch.Generator()).tolist()
    if strange is not None:
        logits[0, seed % vocabulary] = strange
    chosen = [Sampling(temperature=each) for each in temperatures[:rows]]
    found, wanted = draw(logits, chosen, uniforms), sampling._by_torch(logits, chosen, uniforms, None)
    for row in range(rows):
        (token, raw, drawn), (other, *theirs) = ([each[row] for each in of] for of in (found, wanted))
        if math.isnan(theirs[0]):
            assert math.isnan(raw)
            continue
        assert (raw, drawn) == pytest.approx(theirs, abs=1e-4) if token == other else chosen[row].temperature
        # Two ways of summing may part where a running sum meets the uniform number.
        edges = torch.softmax(logits[row].double() / (chosen[row].temperature or 1e-9), dim=-1).cumsum(dim=-1)
        assert token == other or abs(edges[min(token, other)] - uniforms[row]) < 1e-5


@compiled
@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=14),
    st.integers(1, 18),
    st.integers(1, 140),
    st.lists(st.integers(1, 300), min_size=1, max_size=3),
    st.integers(0, 2**16),
)
def test_each_token_takes_its_own_adapter_and_its_bits_depend_on_no_other(slots, rank, inputs, columns, seed):
    """Also if other slots hold what is no number, and between linears that have no adapter."""
    width, of_slots, gap = sum(columns) + 5 * len(columns), torch.tensor(slots), 0
    rows, before = _random(len(slots), inputs, seed=seed, spread=1.0), _random(len(slots), width, seed=seed + 1)
    pairs, wanted = [], before.double()
    for each in columns:
        down, up = (_random(3, rank, size, seed=seed + gap + size, spread=0.3) for size in (inputs, each))
        unused = [slot - 1 for slot in (1, 2, 3) if slot not in slots]
        down[unused], up[unused] = torch.nan, torch.nan
        pairs.append((down, up, gap))
        for row, slot in enumerate(slots):
            if slot:
                own = rows[row].double() @ down[slot - 1].double().T
                wanted[row, gap : gap + each] += own @ up[slot - 1].double()
        gap += each + 5
    linears, found = made.linears(pairs, width), before.clone()
    made.arranged(array(of_slots)).add(linears, rows, found)
    assert torch.allclose(found.double(), wanted, atol=2e-4, rtol=1e-4)
    for row in range(len(slots)):
        alone = before[row : row + 1].clone()
        made.arranged(array(of_slots[row : row + 1].clone())).add(linears, rows[row : row + 1].clone(), alone)
        assert torch.equal(alone[0], found[row])
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    shared = before.clone()
    made.arranged(array(of_slots)).add(linears, rows, shared)
    torch.set_num_threads(threads)
    assert torch.equal(shared, found)


@compiled
@settings(max_examples=30, deadline=None)
@given(ROWS, st.integers(1, 200), st.integers(1, 3), st.integers(0, 2**16))
def test_products_are_torchs_and_a_rows_bits_depend_on_nothing_beside_it(rows, inputs, strips, seed):
    weights, bias = _random(strips, inputs, made.strip, seed=seed, spread=1.0), _random(strips * made.strip, seed=seed)
    own, product = _random(rows, inputs, seed=seed + 1), made.product(array(weights), array(bias))
    # What stands before and behind the output is not touched.
    around = torch.full((rows + 2, len(bias)), 7.0)
    product(own, around[1:-1])
    wanted = own.double() @ weights.transpose(1, 2).flatten(0, 1).double().T + bias.double()
    assert torch.allclose(around[1:-1].double(), wanted, atol=1e-3, rtol=1e-4)
    assert bool((around[[0, -1]] == 7.0).all())
    for first, last in ((0, 1), (rows // 2, rows)):
        alone = torch.empty(last - first, len(bias))
        product(own[first:last].clone(), alone)
        assert torch.equal(alone, around[1 + first : 1 + last])


@compiled
def test_a_product_is_the_same_by_several_threads():
    weights, bias, own = _random(6, 96, made.strip), _random(6 * made.strip), _random(31, 96, seed=1)
    product, found = made.product(array(weights), array(bias)), torch.empty(2, 31, len(bias))
    before = torch.get_num_threads()
    for out, threads in zip(found, (1, 3), strict=True):
        torch.set_num_threads(threads)
        product(own, out)
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("why", ["numba is not there", "numba compiles nothing"])
def test_without_a_compiler_there_are_no_kernels_and_one_line_says_so(why, monkeypatch):
    numba = pytest.importorskip("numba")
    for name in ("adapters", "attention", "compiling", "drawing", "rows"):
        monkeypatch.delitem(sys.modules, f"plaudit.engine.kernels.{name}", raising=False)
        monkeypatch.delattr(kernels, name, raising=False)
    if why == "numba is not there":
        monkeypatch.setitem(sys.modules, "numba", None)
    else:
        monkeypatch.setattr(numba.config, "DISABLE_JIT", True)
    load = functools.cache(kernels.load.__wrapped__)
    with structlog.testing.capture_logs() as lines:
        assert load() is None
        assert load() is None
    assert [line["log_level"] for line in lines] == ["warning"]


def test_one_process_compiles_and_the_others_wait():
    entered = threading.Event()

    def second():
        with kernels._one_compiles():
            entered.set()

    with kernels._one_compiles():
        waits = threading.Thread(target=second, daemon=True)
        waits.start()
        assert not entered.wait(0.2)
    assert entered.wait(60)
    waits.join(60)


def test_a_lock_that_is_somebody_elses_is_not_waited_for(monkeypatch, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    # A file of this user, looked at as another one.
    other = kernels.os.getuid() + 1
    monkeypatch.setattr(kernels.os, "getuid", lambda: other)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    entered = threading.Event()

    def enters():
        with kernels._one_compiles():
            entered.set()

    with (tmp_path / f"plaudit-kernels-{other}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        threading.Thread(target=enters, daemon=True).start()
        assert entered.wait(60)


KERNEL = """
from plaudit.engine.kernels.compiling import kernel

@kernel("int64(int64)")
def doubled(number):
    return 2 * number
"""


@pytest.fixture
def compiling(monkeypatch, tmp_path):
    """The module, with a folder of its own for what it compiles; `again()` is another start."""
    numba = pytest.importorskip("numba")
    from plaudit.engine.kernels import compiling

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "kept"))
    monkeypatch.setattr(compiling, "kept", True)
    source = tmp_path / "some_kernel.py"
    source.write_text(KERNEL)

    def again():
        before = compiling.fresh
        spec = importlib.util.spec_from_file_location(source.stem, source)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, source.stem, module)
        spec.loader.exec_module(module)
        assert module.doubled(21) == 42
        return SimpleNamespace(fresh=compiling.fresh > before, kept=compiling.kept)

    def files(ending):
        return sorted((tmp_path / "kept").rglob(f"*.{ending}"))

    return SimpleNamespace(again=again, files=files, module=compiling)


@compiled
@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_what_was_cut_off_is_compiled_and_kept_anew(compiling, ending):
    """A machine that goes down leaves files without contents, which must not keep later starts from kernels."""
    assert compiling.again().fresh
    assert not compiling.again().fresh
    (file,) = compiling.files(ending)
    file.write_bytes(b"")
    assert compiling.again() == SimpleNamespace(fresh=True, kept=True)
    assert not compiling.again().fresh


@compiled
def test_each_type_of_processor_has_files_of_its_own(compiling, monkeypatch):
    compiling.again()
    first = set(compiling.files("nb?"))
    monkeypatch.setattr(compiling.module, "_processor", lambda: "another")
    assert compiling.again().fresh
    assert len(compiling.files("nb?")) == 2 * len(first) == 4


@compiled
def test_what_could_not_be_written_is_not_said_to_be_kept(compiling, monkeypatch):
    def full(self, sig, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compiling.module.FunctionCache, "save_overload", full)
    monkeypatch.setattr(compiling.module.FunctionCache, "flush", lambda self: full(self, None, None))
    assert compiling.again() == SimpleNamespace(fresh=True, kept=False)


@compiled
@pytest.mark.parametrize(("rows", "columns"), [(1, 8), (3, 8), (2, 7), (2, 9)])
def test_the_kernel_of_adapters_refuses_sizes_that_it_would_leave_memory_with(rows, columns):
    linears = made.linears([(torch.ones(1, 2, 8), torch.ones(1, 2, 8), 0)], 8)
    arranged = made.arranged(array(torch.tensor([1, 1])))
    for own, out in (((rows, columns), (2, 8)), ((2, 8), (rows, columns))):
        with pytest.raises(ValueError, match="made for 2 tokens"):
            arranged.add(linears, torch.ones(*own), torch.ones(*out))


@compiled
def test_kernels_without_torchs_team_of_threads_are_told_of(monkeypatch):
    monkeypatch.setattr(kernels, "shares", lambda: False)
    before = torch.get_num_threads()
    for threads, said in ((1, 0), (2, 1)):
        torch.set_num_threads(threads)
        with structlog.testing.capture_logs() as lines:
            assert kernels.load.__wrapped__() is not None
        assert sum("one thread" in line["event"] for line in lines) == said
    torch.set_num_threads(before)
