"""The steps of a turn, one module each, in the order of `learner.turn`: each takes the results of earlier ones."""
