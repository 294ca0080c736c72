"""The embedded deployment: sandbox and Airflow on one machine, for the demo, the e2e tests and a look around."""
