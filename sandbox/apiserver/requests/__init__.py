"""HTTP: from a request to what is asked for, and from an object to an answer."""
