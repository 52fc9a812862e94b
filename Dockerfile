# The image of pykubeproxy; docs/image.md says what is in it, and why.
#
#   docker build -t pykubeproxy:0.1.0 .
#   docker build --target sbom --output dist .      the bill of materials alone, into dist/
#
# BASE                a Debian 12; pin it with BASE=debian:bookworm-slim@sha256:...
# DEBIAN_SNAPSHOT     a moment of snapshot.debian.org such as 20261121T000000Z, from which to take
#                     the packages; unless given, today's
# SOURCE_DATE_EPOCH   the time that everything written here carries (make image: of the commit)
# REVISION            the commit, for the label
# Plain instructions only, so that every builder knows them.
ARG BASE=debian:bookworm-slim

# --- what runs: the interpreter and the programs that the daemon calls -----------------------------
FROM ${BASE} AS system
ARG DEBIAN_SNAPSHOT=
ARG SOURCE_DATE_EPOCH=1795219200
# iptables brings both variants. nftables: kube-proxy's nftables mode leaves tables that have to go.
# kmod: ip_vs is loaded by modprobe. ipset is not called by the daemon, but by people.
# Removed again is what is left of the installation itself: lists, logs, caches, what was before.
# What was made here gets the one time; hosts, hostname and resolv.conf are lent by the builder.
RUN set -eu; \
    touch /tmp/began; \
    if [ -n "$DEBIAN_SNAPSHOT" ]; then \
        rm -f /etc/apt/sources.list.d/*; \
        from="deb [check-valid-until=no] http://snapshot.debian.org/archive"; \
        { \
            echo "$from/debian/$DEBIAN_SNAPSHOT bookworm main"; \
            echo "$from/debian/$DEBIAN_SNAPSHOT bookworm-updates main"; \
            echo "$from/debian-security/$DEBIAN_SNAPSHOT bookworm-security main"; \
        } > /etc/apt/sources.list; \
    fi; \
    export DEBIAN_FRONTEND=noninteractive PYTHONHASHSEED=0; \
    apt-get update -q; \
    apt-get install -y -q --no-install-recommends \
        ipset iptables kmod libpython3-stdlib nftables python3-minimal; \
    apt-get clean; \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old \
        /var/cache/ldconfig/aux-cache /var/lib/dpkg/*-old /var/log/*.log /var/log/apt; \
    find / -xdev -newer /tmp/began ! -path /tmp/began ! -path /etc/hosts ! -path /etc/hostname \
        ! -path /etc/resolv.conf -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +; \
    rm /tmp/began; \
    touch --date="@$SOURCE_DATE_EPOCH" /tmp

# --- what is built: an environment with the locked packages and our wheel -------------------------
FROM system AS build
ARG SOURCE_DATE_EPOCH=1795219200
ENV PYTHONHASHSEED=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN apt-get update -q \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        binutils python3-venv
WORKDIR /build
RUN python3 -m venv tools && python3 -m venv --without-pip /opt/pykubeproxy
COPY deploy/image/build.lock deploy/image/requirements.lock ./
RUN tools/bin/pip install --require-hashes --only-binary :all: --no-deps -r build.lock \
    && tools/bin/pip --python /opt/pykubeproxy/bin/python install --require-hashes \
        --only-binary :all: --no-deps --no-compile -r requirements.lock
COPY pyproject.toml README.md LICENSE source/
COPY pykubeproxy source/pykubeproxy
RUN tools/bin/pip wheel --no-index --no-deps --no-build-isolation --wheel-dir wheel ./source \
    && tools/bin/pip --python /opt/pykubeproxy/bin/python install --no-index --no-deps \
        --no-compile wheel/*.whl
# Bytecode by content: neither a time of a file nor a directory that can be written is needed.
COPY deploy/image/trim.py ./
RUN python3 trim.py /opt/pykubeproxy \
    && find /opt/pykubeproxy -name '*.so' -exec strip --strip-debug {} + \
    && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/pykubeproxy/lib \
    && find /opt/pykubeproxy -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +

# --- both together --------------------------------------------------------------------------------
FROM system AS runtime
ARG SOURCE_DATE_EPOCH=1795219200
COPY --from=build /opt/pykubeproxy /opt/pykubeproxy
# Under kube-proxy's own path as well: its DaemonSet runs here with another image and nothing else.
RUN ln -s /opt/pykubeproxy/bin/pykubeproxy /usr/local/bin/pykubeproxy \
    && ln -s /opt/pykubeproxy/bin/pykubeproxy /usr/local/bin/kube-proxy \
    && touch --no-dereference --date="@$SOURCE_DATE_EPOCH" \
        /opt /usr/local/bin /usr/local/bin/pykubeproxy /usr/local/bin/kube-proxy
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

# --- the bill of materials ------------------------------------------------------------------------
FROM runtime AS bill
ARG SOURCE_DATE_EPOCH=1795219200
COPY deploy/image/sbom.py /bill/
RUN python3 /bill/sbom.py /opt/pykubeproxy /bill/pykubeproxy.cdx.json \
    && touch --date="@$SOURCE_DATE_EPOCH" /bill/pykubeproxy.cdx.json

FROM scratch AS sbom
COPY --from=bill /bill/pykubeproxy.cdx.json /

# --- the image ------------------------------------------------------------------------------------
FROM runtime
ARG BASE
ARG REVISION=
COPY --from=bill /bill/pykubeproxy.cdx.json /usr/share/sbom/pykubeproxy.cdx.json
LABEL org.opencontainers.image.title="pykubeproxy" \
      org.opencontainers.image.description="A kube-proxy for Linux nodes that writes only what changed" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${BASE}"
# Netfilter asks for CAP_NET_ADMIN, which a container has as root alone.
USER 0:0
EXPOSE 10249 10256
ENTRYPOINT ["/usr/local/bin/pykubeproxy"]
