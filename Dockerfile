# syntax=docker/dockerfile:1
# One file for every service: docker build --build-arg SERVICE=registry -t stellwerk/registry .

FROM ghcr.io/astral-sh/uv:0.13.9 AS uv

FROM python:3.11-slim-bookworm AS build
ARG SERVICE
# Workspace packages to install; the agent also carries the scorer, which it starts in its own interpreter.
ARG PACKAGES="stellwerk-${SERVICE}"
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_PROJECT_ENVIRONMENT=/opt/stellwerk \
    UV_PYTHON_DOWNLOADS=never
WORKDIR /src
COPY pyproject.toml uv.lock ./
COPY protos protos
COPY libs libs
COPY services services
RUN --mount=type=cache,target=/root/.cache/uv \
    test -n "${SERVICE}" || { echo "build with --build-arg SERVICE=<folder of services/>" >&2; exit 1; }; \
    set --; for package in ${PACKAGES}; do set -- "$@" --package "${package}"; done; \
    uv sync --frozen --no-dev --no-editable "$@"

FROM python:3.11-slim-bookworm
ARG SERVICE
LABEL org.opencontainers.image.title="stellwerk-${SERVICE}" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 stellwerk \
    && useradd --uid 10001 --gid stellwerk --home-dir /var/lib/stellwerk --create-home stellwerk
COPY --from=build /opt/stellwerk /opt/stellwerk
COPY --chmod=0755 deploy/entrypoint.sh deploy/healthcheck.py /usr/local/bin/
ENV PATH=/opt/stellwerk/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    STELLWERK_SERVICE=${SERVICE} \
    STELLWERK_LISTEN=0.0.0.0:7400
USER 10001:10001
WORKDIR /var/lib/stellwerk
EXPOSE 7400
ENTRYPOINT ["entrypoint.sh"]
