"""The trainer's commands, imported when they run."""
