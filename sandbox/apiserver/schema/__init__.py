"""The types of objects: decoding, defaulting, CustomResourceDefinitions and structural schemas."""
