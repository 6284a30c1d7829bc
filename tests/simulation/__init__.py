"""A deterministic simulator of the join: one seed is one schedule of events, workers and faults.

The lane, its transactions, recovery, the store and the fold are the shipped ones. Simulated are what they talk to: the log with its
transactions (`log`), the consumer group (`group`), the client library (`clients`), the local database (`disk`), Faust and the clockwork
(`process`), and time (`scheduler`). `schedule.run(seed)` is one run; `verdict` compares it with an offline fold of the same events.
"""
