"""Types of single values in a cluster file: durations, names and versions, cron expressions."""
