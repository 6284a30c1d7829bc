"""The streams side of treadle: broker, workspaces, import, join, worker, snapshots, supervisor. See docs/architecture.md."""
