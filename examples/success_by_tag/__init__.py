"""Success rates by tag and hour, kept by a Faust app beside the join."""
