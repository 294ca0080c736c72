"""What makes an object, a name or a selector invalid, in the words of the real API server."""
