"""What was loaded at the start is taken out of the collector's work."""

import subprocess
import sys

ASKED = """
import gc
from plaudit.garbage import set_aside
held = [[] for _ in range(5000)]
set_aside(9000)
print(gc.get_freeze_count() > 5000, gc.get_threshold()[0], any(each is held for each in gc.get_objects()))
"""


def test_what_there_is_is_never_looked_at_again():
    done = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "9000", "False"]
