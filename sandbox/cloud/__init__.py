"""The whole small cloud in one process: which parts run, how they are connected, and the API that controls them."""
