"""An evaluator that scores an agent's work in the background, in a process of its own."""
