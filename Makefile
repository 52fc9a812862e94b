# Everything runs in .venv, on a Debian-like machine, as root (network namespaces, netfilter).
#
# What needs IPVS boots a User-Mode Linux guest that has it, if the running kernel has not.
#
#   make demo    set up, then the real daemon on examples/ with real connections
#   make test    set up, then every test: pure, API, kernel
#   make guest   set up, then the tests that need a kernel with IPVS
#   make check   set up, then ruff, mypy --strict, import-linter
#   make bench   set up, then what starts and changes cost, in worlds WORLDS, both variants
#   make figures      the picture and the tables of docs/performance.md, from its .json
#   make performance  everything on that page measured anew (half an hour), and make figures
#   make image   the container image, and its bill of materials in dist/ (wants docker, or ENGINE)
#   make kind    the image in kind clusters, tested from pods (wants docker, kind, kubectl)
#   make lock    the image's Python packages, locked anew at their newest versions
#   make rules        deploy/monitoring/prometheusrule.yaml, from rules.yaml beside it
#
# WORLDS      for make bench: SERVICESxENDPOINTS, several (unless said otherwise 1000x5 10000x5)
# MODE        for make demo: iptables (unless said otherwise) or ipvs
# PYTHON      the interpreter to build .venv with (3.11 or later)
# ENGINE      for make image: docker (unless said otherwise), podman or buildah
# MODES       for make kind: iptables, ipvs (unless said otherwise both)
# KUBECONFIG  for make e2e-cluster: a cluster to run that suite against

MODE ?= iptables
WORLDS ?= 1000x5 10000x5
ALL_WORLDS := 100x5 1000x5 2000x5 5000x5 10000x5 20000x5 1000x250 1x10000
ENGINE ?= docker
IMAGE := pykubeproxy:0.1.0
PERFORMANCE := docs/performance.json
MONITORING := deploy/monitoring
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
PACKAGES := iptables iproute2 ipset ipvsadm conntrack nfacct nftables user-mode-linux kmod \
	prometheus debootstrap python3-venv python3-dev gcc libc6-dev
TOOLS := iptables-nft iptables-legacy ip ipset ipvsadm conntrack nfacct nft linux.uml modprobe \
	prometheus promtool debootstrap gcc
STAMP := $(VENV)/.stamp

export PYTHONDONTWRITEBYTECODE = 1

.PHONY: help demo test check setup tools unit kernel guest cluster monitoring e2e-cluster golden \
	bench figures performance rules image kind lock format clean

help:
	@sed -n 's/^#   //p' Makefile

demo: setup
	@$(SUDO) $(BIN)/python -m demo --mode $(MODE)

test: setup
	$(SUDO) $(BIN)/python -m pytest tests e2e

unit: setup
	$(BIN)/python -m pytest tests

kernel: setup
	$(SUDO) $(BIN)/python -m pytest e2e/kernel

guest: setup
	$(SUDO) $(BIN)/python -m pytest e2e/kernel/ipvs

cluster: setup
	$(SUDO) $(BIN)/python -m pytest e2e/cluster

monitoring: setup
	$(SUDO) $(BIN)/python -m pytest e2e/monitoring

e2e-cluster: setup
	@test -n "$(KUBECONFIG)" || { echo "name a cluster: make e2e-cluster KUBECONFIG=FILE"; exit 2; }
	$(SUDO) KUBECONFIG="$(KUBECONFIG)" $(BIN)/python -m pytest e2e/cluster -p no:cacheprovider --real-cluster

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

golden: setup
	$(BIN)/python -m pytest -q tests/scenarios --golden

bench: setup
	$(SUDO) $(BIN)/python -m bench run $(WORLDS)

figures: setup
	$(BIN)/python -m bench figures $(PERFORMANCE)

performance: setup
	$(SUDO) $(BIN)/python -m bench run --json $(PERFORMANCE) $(ALL_WORLDS)
	$(BIN)/python -m bench figures $(PERFORMANCE)

image:
	$(ENGINE) build --build-arg REVISION="$$(git rev-parse HEAD)" --tag $(IMAGE) .
	$(ENGINE) build --target sbom --output dist .

kind: setup
	$(BIN)/python -m e2e.kind $(MODES)

lock: setup
	$(BIN)/python -m pip install -q uv
	deploy/image/lock $(BIN)

rules:
	sed -i '/^spec:$$/q' $(MONITORING)/prometheusrule.yaml
	sed -n '/^groups:$$/,$$p' $(MONITORING)/rules.yaml | sed 's/^./  &/' \
		>>$(MONITORING)/prometheusrule.yaml

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: tools $(STAMP)

# Debian's packages, only if something is missing.
tools:
	@missing=""; \
	for tool in $(TOOLS); do \
		PATH="$$PATH:/usr/sbin:/sbin" command -v $$tool >/dev/null || missing="$$missing $$tool"; \
	done; \
	$(PYTHON) -c 'import ensurepip, venv, sysconfig, os, sys; \
		sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' 2>/dev/null \
		|| missing="$$missing python3-venv"; \
	if [ -n "$$missing" ]; then \
		echo "installing what provides:$$missing"; \
		$(SUDO) apt-get update -q && \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -q --no-install-recommends $(PACKAGES); \
	fi

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e '.[test,check]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
