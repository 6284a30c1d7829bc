"""Real faults on a real broker: workers and broker are killed, stopped, starved of disk, and the history is checked.

`python tests/soak --minutes 30` runs rounds of drawn faults; tests/fault/test_worker_faults.py runs one of each.
"""
