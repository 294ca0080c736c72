"""How a patch or an applied configuration changes an object."""
