FROM python:3.11-slim AS build
RUN python -m venv /opt/sparkledger
ENV PATH=/opt/sparkledger/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
# The dependencies in a layer of their own: a change of the program leaves it as it was.
COPY requirements.lock ./
RUN pip install --require-hashes --requirement requirements.lock
COPY . ./
RUN pip install --no-deps --no-build-isolation .

FROM python:3.11-slim
# An id of its own, so that it owns nothing on the host and nothing in the image but its data directory.
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /var/lib/sparkledger sparkledger \
    && install --directory --owner sparkledger --group sparkledger --mode 0700 \
        /var/lib/sparkledger /var/lib/sparkledger/anchor /var/lib/sparkledger/erasure-keys /var/lib/sparkledger/signing
COPY --from=build /opt/sparkledger /opt/sparkledger
# All addresses of the container; which of them the host offers is decided where it is started.
ENV PATH=/opt/sparkledger/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SPARKLEDGER_DATA_DIR=/var/lib/sparkledger \
    SPARKLEDGER_HOST=0.0.0.0
USER 10001:10001
WORKDIR /var/lib/sparkledger
# Without what is in here no secret can be read: it must outlive the container, and all containers share it.
VOLUME /var/lib/sparkledger/erasure-keys
# The signing keys and last checkpoints, which only the sealer's container mounts.
VOLUME /var/lib/sparkledger/signing
# What the worker notes of the logs, apart from the database.
VOLUME /var/lib/sparkledger/anchor
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --start-interval=1s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/livez', timeout=4)"]
ENTRYPOINT ["sparkledger"]
CMD ["serve"]
