"""Evidence: the join of interactions with feedback, its store, and the frozen data sets made from it.

Records of the log enter (`join`), evidence rows leave as a `FrozenDataSet` (`store`). The store is a cache of the
log: everything in it can be rebuilt from the first retained offset.
"""
