"""Rounds of faults: kills, damages, full disks, broken trackers, mutated inputs and many runs at once.

`make faults` runs the short round; `make faults ROUND=long` the long one. Every choice follows from the seed.
"""
