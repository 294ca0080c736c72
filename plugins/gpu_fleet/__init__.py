"""GPU capacity on Amazon EKS, operated from Apache Airflow."""

__version__ = "0.1.0"
