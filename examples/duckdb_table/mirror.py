"""A table of graded rows, kept current: `python -m duckdb_table.mirror WS FILE`. It may be killed at any time.

Rows and positions change in one transaction, so the table is always what `.graded` says up to its positions.
"""

import sys

import duckdb
import treadle


def mirror(workspace: str, file: str, idle_s: float | None = None) -> None:
    """Follow until `idle_s` pass without a new row."""
    with duckdb.connect(file) as db:
        db.execute("CREATE TABLE IF NOT EXISTS positions (partition INT PRIMARY KEY, next BIGINT)")
        db.execute("""CREATE TABLE IF NOT EXISTS graded (episode VARCHAR, interaction VARCHAR, task VARCHAR, reward DOUBLE, settled BOOLEAN,
                      revision INT, PRIMARY KEY (episode, interaction))""")
        start = dict(db.execute("SELECT partition, next FROM positions").fetchall())
        with treadle.consume(workspace, "graded", start=start) as rows:
            while (batch := rows.batch(timeout_s=idle_s or 1.0)) or idle_s is None:
                db.begin()
                for row in batch:
                    task, grade = row.interaction.get("task_id"), row.grade
                    values = [row.episode_id, row.interaction_id, task, grade.reward, grade.settled]
                    db.execute("INSERT OR REPLACE INTO graded VALUES (?,?,?,?,?,?)", [*values, row.provenance.revision])
                db.executemany("INSERT OR REPLACE INTO positions VALUES (?,?)", [*rows.positions.items()])
                db.commit()


if __name__ == "__main__":
    mirror(sys.argv[1], sys.argv[2])
