"""AWS through boto3, with the credentials, region and endpoints of an Airflow connection, and typed errors."""

from gpu_fleet.hooks.aws.endpoints import regional_endpoint
from gpu_fleet.hooks.aws.responses import dig
from gpu_fleet.hooks.aws.session import CONNECTION_TTL_S, AwsSession, aws_session, forget_sessions

__all__ = ["CONNECTION_TTL_S", "AwsSession", "aws_session", "dig", "forget_sessions", "regional_endpoint"]
