# The worker on a slim Python: docker build --build-arg REVISION="$(git rev-parse HEAD)" -t gigaoffice-worker .
# A tag moves. Where builds must be repeatable, give BASE with the digest that your registry names for it:
#   docker buildx imagetools inspect python:3.13-slim-bookworm --format '{{.Manifest.Digest}}'
#   docker build --build-arg BASE=python:3.13-slim-bookworm@sha256:… .
# pip's variables are arguments too: PIP_INDEX_URL for an index of your own, PIP_FIND_LINKS with PIP_NO_INDEX for a
# directory that is mounted into the build.
ARG BASE=python:3.13-slim-bookworm

FROM ${BASE} AS build
ARG PIP_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
# Which lock: image.txt has what WORKER_HANDLER=http needs, image-gigachat.txt also the GigaChat client.
ARG REQUIREMENTS=image.txt
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE ./
COPY requirements requirements
COPY gigaoffice_worker gigaoffice_worker
# pip stays behind in a virtual environment of its own, and so does what builds the wheel, which has a lock too.
RUN python3 -m venv /tools \
 && python3 -m venv --without-pip /opt/gigaoffice-worker \
 && /tools/bin/pip install --require-hashes --only-binary :all: --requirement requirements/build.txt \
 && /tools/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheel . \
 && /tools/bin/pip --python /opt/gigaoffice-worker/bin/python install \
    --require-hashes --only-binary :all: --requirement "requirements/${REQUIREMENTS}" \
 && /tools/bin/pip --python /opt/gigaoffice-worker/bin/python install --no-deps --no-index /wheel/*.whl

FROM ${BASE}
ARG REVISION=unknown
LABEL org.opencontainers.image.title="gigaoffice-worker" \
      org.opencontainers.image.description="A Kafka worker that answers GigaOffice requests" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/gigaoffice-worker /opt/gigaoffice-worker
# In a container the side port must be reached from outside: METRICS_HOST is not the loopback address here. Whoever
# reaches it reads metrics and /status, so publish it to the monitoring alone.
ENV PATH=/opt/gigaoffice-worker/bin:$PATH \
    METRICS_HOST=0.0.0.0 \
    METRICS_PORT=9464 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONFAULTHANDLER=1 \
    PYTHONUNBUFFERED=1
# A handler of your own is found here: WORKER_HANDLER=answers:handle for /handlers/answers.py.
WORKDIR /handlers
USER 10001:10001
EXPOSE 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=6s --start-period=30s --retries=3 CMD ["gigaoffice-worker", "health", "--live"]
ENTRYPOINT ["gigaoffice-worker"]
CMD ["run"]
