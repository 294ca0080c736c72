"""All gates, one module per subject. Importing this package registers them."""
