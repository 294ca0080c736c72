# The package on the official Airflow image. Every component (scheduler, worker, triggerer, API server, DAG processor)
# must run this image: triggers and plugins are imported in each of them.
# amd64 wherever it is built: the base image is for several platforms, the helm that is copied into it for one.
ARG AIRFLOW_VERSION=3.3.2
ARG PYTHON_VERSION=3.11
# By tag: no digest of it has been published outside its registry. docs/guides/deploy.md has the command that pins it.
ARG AIRFLOW_IMAGE=apache/airflow:${AIRFLOW_VERSION}-python${PYTHON_VERSION}
# Digest: github.com/docker-library/repo-info, repos/debian/remote/bookworm-20260918-slim.md at 43a0ed1e, 2026-09-19
ARG DEBIAN_IMAGE=debian:bookworm-20260918-slim@sha256:3783cc01769c7b2b1b83a5c5ad96c815348e28ed7da68e2e3687004faa906251

# --- helm: from the Helm project's own archive -----------------------------------------------------------------------
FROM --platform=linux/amd64 ${DEBIAN_IMAGE} AS helm
ARG HELM_VERSION=4.2.3
# sha256 of the extracted binary, not of the archive: the same figure is checked wherever else the binary comes from
# (tools/toolchain.py).
ARG HELM_SHA256=aeb4645b9e6658948efa290e28dd23ae75a16fb73f137942f2294fd5c7fcb573
ADD https://get.helm.sh/helm-v${HELM_VERSION}-linux-amd64.tar.gz /tmp/helm.tar.gz
RUN tar -xzf /tmp/helm.tar.gz -C /tmp linux-amd64/helm \
    && echo "${HELM_SHA256}  /tmp/linux-amd64/helm" | sha256sum --check --strict \
    && install -m 0755 /tmp/linux-amd64/helm /usr/local/bin/helm

# --- Airflow with the package ----------------------------------------------------------------------------------------
FROM --platform=linux/amd64 ${AIRFLOW_IMAGE} AS airflow
COPY --from=helm /usr/local/bin/helm /usr/local/bin/helm
COPY --chown=airflow:0 requirements.txt /opt/gpu-fleet/requirements.txt
RUN pip install --no-cache-dir --require-hashes --requirement /opt/gpu-fleet/requirements.txt
COPY --chown=airflow:0 dags /opt/airflow/dags
COPY --chown=airflow:0 plugins /opt/airflow/plugins
COPY --chown=airflow:0 include /opt/airflow/include
# A volume that is mounted here takes the folder's owner and mode: the components' user is in group 0.
RUN mkdir -m 0775 /opt/airflow/gpu-fleet
ENV HELM_BIN=/usr/local/bin/helm \
    PYTHONPATH=/opt/airflow/plugins \
    GPU_FLEET_CLUSTERS_DIR=/opt/airflow/include/clusters

# --- the same, with the embedded cloud, for docker-compose.sandbox.yaml ----------------------------------------------
FROM airflow AS sandbox
COPY --chown=airflow:0 requirements-dev.txt /opt/gpu-fleet/requirements-dev.txt
RUN pip install --no-cache-dir --require-hashes --requirement /opt/gpu-fleet/requirements-dev.txt
COPY --chown=airflow:0 sandbox /opt/airflow/sandbox
COPY --chown=airflow:0 demo /opt/airflow/demo
COPY --chown=airflow:0 tools /opt/airflow/tools
# The base image's user may not make folders in the root.
USER root
RUN mkdir /sandbox && chown airflow:0 /sandbox && chmod 0770 /sandbox
USER airflow
ENV PYTHONPATH=/opt/airflow:/opt/airflow/plugins

# What is built when no target is named.
FROM airflow
