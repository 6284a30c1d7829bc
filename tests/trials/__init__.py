"""Simulated decisions: how often gate and guard are wrong, and how soon they are right.

`python tests/trials` prints the tables; the tests run the same functions with fewer repetitions and a bound that
they can miss.
"""
