# Two images: `hotline` for the three processes, and `proxy`. How they run together: compose.yaml, docs/containers.md.

FROM python:3.11-slim-bookworm AS packages
COPY requirements.lock /tmp/
RUN python -m venv /opt/venv \
    && /opt/venv/bin/python -m pip --quiet --disable-pip-version-check --no-input --no-cache-dir install \
        --require-hashes --only-binary :all: --requirement /tmp/requirements.lock

FROM python:3.11-slim-bookworm AS hotline
COPY --from=packages /opt/venv /opt/venv
WORKDIR /app
COPY alembic alembic
COPY service service
COPY dashboards dashboards
COPY webhooks webhooks
COPY commands commands
COPY deploy/overload_pages.py deploy/
# The root file system is read-only when it runs, so what Python would write is written here.
RUN /opt/venv/bin/python -m compileall -q alembic service dashboards webhooks commands deploy \
    && install -d -o 10005 -g 10005 /pages
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
ENTRYPOINT ["python", "-m", "commands"]
CMD ["--help"]

FROM debian:bookworm-slim AS proxy
RUN apt-get update \
    && apt-get install --yes --no-install-recommends haproxy \
    && rm -rf /var/lib/apt/lists/*
COPY deploy/haproxy.cfg deploy/carriers.txt /etc/haproxy/
RUN install -d -o 10005 -g 10005 /pages
USER 10006:10006
STOPSIGNAL SIGUSR1
ENTRYPOINT ["haproxy", "-W", "-db", "-f", "/etc/haproxy/haproxy.cfg"]

# The last is what a build without --target makes.
FROM hotline
