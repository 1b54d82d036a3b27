"""Releases: what they are made of, whether they may serve, and which one a channel serves.

`manifest` says what a release is, `gate` decides whether it may serve (pure), `registry` keeps releases and is the
only place that changes which one a channel serves.
"""
