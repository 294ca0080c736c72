"""The plugin's pages in Airflow's API server: reports and histories, read from Airflow's database alone.

Nothing here is imported by a task or by the parser of a DAG file; the plugin mounts :mod:`gpu_fleet.ui.lazy`, which
imports the rest at the first request.
"""
