# The bridge's image: a slim Python without its shell, pip and package manager, one virtual environment, nothing else.
#
#   docker build --tag consul-endpoints-bridge:0.1.0 .      (which `make image` does, with the labels)
#
# Where a build reaches no package index, bring the wheels along (for the Python of BASE):
#
#   pip download --require-hashes --no-deps --only-binary :all: --dest wheelhouse \
#       --requirement requirements/build.txt --requirement requirements/image.txt --requirement requirements/sbom.txt
#   docker build --build-arg PIP_NO_INDEX=1 --build-arg PIP_FIND_LINKS=/wheelhouse --tag consul-endpoints-bridge:0.1.0 .
#
# No BuildKit feature is used, so that an engine without buildx builds it too. The same sources, base and
# SOURCE_DATE_EPOCH give the same layers; `make image` makes them the same digest as well (docs/release.md).
ARG BASE=python:3.12-slim

FROM ${BASE} AS build

# pip reads its settings from the environment, and an ARG is one during the build: unset, they change nothing.
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS
ARG PIP_INDEX_URL
ARG SOURCE_DATE_EPOCH=0
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PYTHONDONTWRITEBYTECODE=1 \
    PYTHONHASHSEED=0

# The bracket makes the folder optional; LICENSE is there because COPY wants one source that always exists.
COPY LICENSE wheelhous[e] /wheelhouse/
COPY requirements/build.txt requirements/image.txt requirements/sbom.txt /src/requirements/

# The dependencies come before the sources: a change of the sources does not install them again.
# Taken out again, 70 MB: `kubernetes/aio`, a second copy of the client for asyncio. requirements/image.txt leaves out
# aiohttp's family, which only that copy uses. tests/e2e/test_image.py imports what is left.
RUN python -m venv --without-pip /opt/build \
 && python -m pip --python /opt/build/bin/python install --no-compile --no-deps --require-hashes --only-binary :all: \
      --requirement /src/requirements/build.txt \
 && python -m venv --without-pip /opt/bridge \
 && python -m pip --python /opt/bridge/bin/python install --no-compile --no-deps --require-hashes --only-binary :all: \
      --requirement /src/requirements/image.txt \
 && rm -rf /opt/bridge/lib/python3.*/site-packages/kubernetes/aio \
 && python -m venv --without-pip /opt/sbom \
 && python -m pip --python /opt/sbom/bin/python install --no-compile --no-deps --require-hashes --only-binary :all: \
      --requirement /src/requirements/sbom.txt

COPY pyproject.toml README.md LICENSE NOTICE /src/
COPY bridge /src/bridge

# The bill of materials lists what was really installed, with licences; it lies beside NOTICE and LICENSE.
# Compiled here, once: the file system is read-only when it runs. Unchecked: the sources beside cannot change. Left as
# sources, 30 MB: the Kubernetes client's thousand generated classes (the bridge reads plain JSON) and pygments' lexers
# (rich loads them for program texts only); both still import.
RUN cd /src \
 && /opt/build/bin/python -m hatchling build --target wheel --directory /dist \
 && python -m pip --python /opt/bridge/bin/python install --no-compile --no-deps --no-index /dist/*.whl \
 && mkdir -p /opt/bridge/share/doc/consul-endpoints-bridge \
 && cp LICENSE NOTICE /opt/bridge/share/doc/consul-endpoints-bridge/ \
 && /opt/sbom/bin/cyclonedx-py environment --output-reproducible --output-format JSON \
      --output-file /opt/bridge/share/doc/consul-endpoints-bridge/sbom.cdx.json /opt/bridge/bin/python \
 && python -m compileall -q -j 0 --invalidation-mode unchecked-hash -x '/(kubernetes/client/(api|models)|pygments/(lexers|styles))/' /opt/bridge/lib

FROM ${BASE} AS root

ARG SOURCE_DATE_EPOCH=0
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0

# The official images come without the standard library's compiled files; every start would compile it again.
RUN python -m compileall -q -j 0 --invalidation-mode unchecked-hash \
      -x '/(test|tests|idlelib|tkinter|turtledemo|lib2to3|ensurepip|site-packages|dist-packages)/' \
      "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"

COPY --from=build /opt/bridge /opt/bridge
COPY image/slim.py /src/slim.py
RUN python /src/slim.py / "$(command -v python)"

# One layer without history: what was taken out is not in a lower one.
FROM scratch

COPY --from=root / /

ENV PATH=/opt/bridge/bin:/usr/local/bin:/usr/bin LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

# `make image` says them; a build without leaves empty what it does not know.
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE
ARG CREATED
ARG BASE_NAME
ARG BASE_DIGEST
LABEL org.opencontainers.image.title="consul-endpoints-bridge" \
      org.opencontainers.image.description="Keeps Kubernetes EndpointSlices and Endpoints equal to what Consul knows about services on VMs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.base.name="${BASE_NAME}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}"

# By number, so that Kubernetes can see that it is not root. No HEALTHCHECK: the orchestrator's probes do that.
USER 65532:65532
WORKDIR /
EXPOSE 9480
ENTRYPOINT ["bridge"]
CMD ["run"]
