"""The commands of the trainer's side: name -> ("module:attribute", one line of help). Nothing is imported to list them."""

from __future__ import annotations

from typing import Final

__all__ = ["COMMANDS"]

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "train": ("treadle_trainer.commands.train:train", "Train a model on a corpus version."),
    "job": ("treadle_trainer.commands.job:job", "Submit, follow, cancel and resume trainings."),
    "release": ("treadle_trainer.commands.release:release", "List, show, register, promote and roll back releases."),
    "eval": ("treadle_trainer.commands.eval:evaluation", "Measure a release on held-out rows, beside another one."),
    "cycle": ("treadle_trainer.commands.cycle:cycle", "Show how long turns take by stage, and what they cost."),
    "lineage": (
        "treadle_trainer.commands.lineage:lineage",
        "Show where a release comes from, and what became of a row.",
    ),
    "rights": ("treadle_trainer.commands.rights:rights", "Deny or allow what may be done with recorded work."),
    "serve": (
        "treadle_trainer.commands.serve:serve",
        "Answer OpenAI chat completions with the champion, or a canary.",
    ),
    "mirror": ("treadle_trainer.commands.mirror:mirror", "Show releases in an MLflow registry."),
    "trainer": ("treadle_trainer.commands.services:trainer", "Run the service that trains on new corpus versions."),
    "guard": ("treadle_trainer.commands.services:guard", "Run the service that watches the live champion."),
}
