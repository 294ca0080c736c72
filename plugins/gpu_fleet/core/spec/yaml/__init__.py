"""How the text of a cluster file becomes plain values: bounded, and without guessing."""
