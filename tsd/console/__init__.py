"""How a command behaves on a terminal and in a log: progress, and what is not imported for it."""
