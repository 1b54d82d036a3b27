"""Kernels give what torch's operators give, row by row, and an engine does without them where they do not compile."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plaudit.engine import kernels
from plaudit.engine.kernels import array
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


@pytest.mark.parametrize(
    "broken", ["import sys; sys.modules['numba'] = None", "import os; os.environ['NUMBA_DISABLE_JIT'] = '1'"]
)
def test_without_a_compiler_there_are_no_kernels_and_one_line_says_so(broken):
    program = f"{broken}\nfrom plaudit.engine import kernels\nassert kernels.load() is None\nkernels.load()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert (done.stdout + done.stderr).count("kernels are not compiled here") == 1
