"""What objects look like on the wire: JSON, YAML, protobuf, metadata alone, tables."""
