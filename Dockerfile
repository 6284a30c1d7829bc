# One image for every treadle process: `docker build .`, or `docker compose build`.
#   EXTRAS=streams        worker, snapshotter, indexer, every command that talks to Kafka
#   EXTRAS=streams,train  trainer and guard as well (torch)
#   BASE_IMAGE            any Debian-like image with Python 3.11 to 3.13
ARG BASE_IMAGE=python:3.12-slim

FROM ${BASE_IMAGE} AS build
ARG EXTRAS=streams
RUN python3 -m venv /opt/treadle && /opt/treadle/bin/pip install --no-cache-dir uv
ENV VIRTUAL_ENV=/opt/treadle
# The dependencies alone, so that a change of the code does not install them again. The lock file bounds the versions and
# its hashes are checked.
WORKDIR /src
COPY pyproject.toml requirements/lock.txt ./
RUN for extra in $(echo "${EXTRAS}" | tr , " "); do set -- "$@" --extra "$extra"; done \
 && /opt/treadle/bin/uv pip install --no-cache --constraint lock.txt --requirement pyproject.toml "$@"
COPY . .
RUN /opt/treadle/bin/uv pip install --no-cache --no-deps . && /opt/treadle/bin/uv pip uninstall uv

FROM ${BASE_IMAGE}
RUN useradd --uid 1000 --create-home treadle \
 && install --directory --owner=treadle --mode=0700 /var/lib/treadle
COPY --from=build /opt/treadle /opt/treadle
ENV PATH=/opt/treadle/bin:${PATH} PYTHONUNBUFFERED=1 TREADLE_HOME=/var/lib/treadle
USER treadle
WORKDIR /var/lib/treadle
VOLUME /var/lib/treadle
ENTRYPOINT ["treadle"]
CMD ["--help"]
