"""Python's collector of reference cycles in processes that run for long.

It looks through all that a process holds again and again, and finds nothing in what was loaded at the start: modules,
settings, the model's layers. Whoever has loaded everything takes that out of its work.
"""

from __future__ import annotations

import gc

# One batch of the join makes some ten thousand objects that live until its commit, and hardly a cycle. The collector
# looks at new objects whenever there are so many more; Python's own number is 700.
JOIN_OBJECTS = 10_000


def set_aside(new_objects: int | None = None) -> None:
    """Never looks again at what there is now; `new_objects`: how many more there are before it looks at new ones."""
    gc.collect()
    gc.freeze()
    if new_objects is not None:
        gc.set_threshold(new_objects, *gc.get_threshold()[1:])
