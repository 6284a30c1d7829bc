"""Faust apps of your own beside the join: agents and windowed tables on a workspace's topics.

`treadle worker --workspace WS --app pkg.mod` runs `pkg.mod` in a process of its own. The module defines `build(app)`, which gets an
`App` and declares tables and agents on it:

    def build(app: App) -> None:
        counts = app.Table("counts", default=int)

        @app.agent(app.workspace_topic("graded"))
        async def count(stream):
            async for event in stream.events():
                row = read(event)

What is guaranteed: an event is processed at least once, in the order of its partition, and its position is committed only after every table
change and every message that it and the ones before it caused is acknowledged. After kill -9 tables are what their changelogs say, and the
events since the last commit come again: make changes that can be repeated (`once`).
"""

from treadle_streams.apps._app import App, once, read

__all__ = ["App", "once", "read"]
