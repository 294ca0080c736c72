"""Admission: what changes or refuses a valid object before it is stored."""
