# The image of every Plaudit process: plaudit serve, plaudit join, plaudit learn.
#   docker build --tag plaudit:0.1.0 .
#   docker build --tag plaudit:0.1.0 --build-arg TORCH_INDEX=<index with the wanted build> --build-arg PLUGINS="instruction echo" .
# Python 3.11.16 for every platform, as docker-library/repo-info lists it (repos/python/remote/3.11-slim-bookworm.md).
# A newer one: docker buildx imagetools inspect python:3.11-slim-bookworm
ARG PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:0bee7276f83efd4a1ee05bbbf4281d95ed28e079220a9457f25a93e3f1e3c31b

FROM ${PYTHON_IMAGE} AS build
# The build of torch: TORCH names it, TORCH_INDEX is an index that offers it (empty: pip's own).
ARG TORCH="torch==2.13.0"
ARG TORCH_INDEX=""
# Domains of this repository that the image carries.
ARG PLUGINS="instruction"
# Further distributions: a database driver, an object store, plugins from elsewhere.
ARG PACKAGES="psycopg[binary]>=3.2"
ENV PATH=/srv/plaudit/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /srv/plaudit
# Torch is most of the image and changes seldom, so it has a layer of its own.
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH"
COPY constraints.txt ./
# The build of torch was chosen above; the other tested versions hold.
RUN grep -v '^torch==' constraints.txt > tested.txt && if [ -n "$PACKAGES" ]; then pip install -c tested.txt $PACKAGES; fi
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY plugins plugins
RUN pip install -c tested.txt ".[service,kafka,postgres,tokens,vllm]" $(for name in $PLUGINS; do echo "./plugins/$name"; done) \
 && pip uninstall --yes pip \
 && plaudit --help >/dev/null

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=""
LABEL org.opencontainers.image.title="plaudit" \
      org.opencontainers.image.description="Online feedback service for deployed assistants" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN groupadd --gid 10001 plaudit \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin plaudit \
 && install -d -o 10001 -g 10001 -m 0750 /var/lib/plaudit \
 && install -d -m 0755 /models
COPY --from=build /srv/plaudit /srv/plaudit
# HOME is /tmp, so that nothing is written elsewhere under a read-only root but in the data directory.
ENV PATH=/srv/plaudit/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PLAUDIT_DATA_DIR=/var/lib/plaudit
WORKDIR /var/lib/plaudit
VOLUME ["/var/lib/plaudit"]
USER 10001:10001
# Serving beyond loopback needs a certificate and keys, or serve.insecure (docs/access.md).
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
ENTRYPOINT ["plaudit"]
CMD ["serve"]
