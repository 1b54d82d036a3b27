"""The cores are handed from thread to thread: a team given back is gone, and comes again. First calls are settled."""

import subprocess
import sys

import pytest
from plaudit.engine import threads

PROGRAM = """
import os, time
import torch
from plaudit.engine import threads

def tasks():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(3)
threads.settle_kernels()
matrix = torch.randn(1024, 1024)
alone = tasks()
first = torch.exp(matrix)
team = tasks()
threads.release_team()
ends = time.monotonic() + 60
while tasks() > alone and time.monotonic() < ends:  # a thread that has ended may be listed for a moment
    time.sleep(0.01)
released = tasks()
again = torch.allclose(torch.exp(matrix), first)
print(threads._function("omp_pause_resource_all") is not None, team - alone, released - alone, again)
"""


def test_a_released_team_is_gone_and_the_next_operation_makes_a_new_one():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    gnu, made, left, again = done.stdout.split()
    if gnu == "False":
        pytest.skip("torch's OpenMP is not GNU's here")
    assert (int(made), int(left), again) == (2, 0, "True")


def test_a_base_settles_mkls_kernels_before_it_computes(tiny_base):
    # Which kernel a race would have chosen cannot be provoked at will; that the first calls were made can be seen.
    assert threads.settle_kernels.cache_info().misses == 1


COPIES = """
import ctypes, shutil, sys
from pathlib import Path
import torch
from plaudit.engine import threads

of_torch = next(Path(torch.__file__).parent.rglob("libgomp*"), None)
if of_torch is not None:
    other = Path(sys.argv[1]) / "libgomp-0123abcd.so.1"
    shutil.copy(of_torch, other)
    ctypes.CDLL(str(other))
print(of_torch is not None, threads.shares())
"""


def test_torchs_own_team_is_found_beside_another_copy_of_its_library(tmp_path):
    done = subprocess.run([sys.executable, "-c", COPIES, tmp_path], capture_output=True, text=True, check=True)
    brings_one, found = done.stdout.split()
    if brings_one == "False":
        pytest.skip("torch brings no OpenMP of GNU's here")
    assert found == "True"
