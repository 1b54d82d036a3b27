"""The reward model: from frozen evidence to a calibrated score of a completion.

`likelihoods` are the pure equations, `dataset` turns evidence into weighted units, `model` is the scorer, `fit`
trains it, `calibration` measures it on raters it has never seen. Serving never imports this package.
"""
