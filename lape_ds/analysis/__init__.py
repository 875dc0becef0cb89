"""What finished stages say: a room each for a training, for its alignment of languages, for neuron sets and for a sweep.

Beside the rooms what they share (style.py, intervals.py), and what uses several of them or none.
"""
