# `make` alone lists the targets.
#   make up                              a node at /var/lib/splitd and /run/splitd
#   make up ROOT=/x/root STATE=/x/state  a node of its own, its socket at STATE/containerd.sock

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
MAKEFLAGS += --no-print-directory
# Images of Python often set it. Each of the thousands of processes of the tests would compile 300 modules at its start.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WHERE = $(if $(ROOT),--root "$(ROOT)") $(if $(STATE),--state "$(STATE)") $(if $(CONFIG),--config "$(CONFIG)")
PEERS := $(VENV)/peers
PYTEST := $(BIN)/python -m pytest
SIDE_BY_SIDE := $(BIN)/python -m tests.side_by_side
STRANGERS := tests/fuzz tests/hostile tests/peers/test_crane.py
# Parts of the tests: four run side by side, and the next begins when one has ended. The longest are first and short ones last, so that
# all end at about the same time. Those whose containers have ctr's cgroups, named as the containers are, are one part.
NODES := $(wildcard tests/node/test_*.py tests/crash/test_*.py) tests/hostile tests/peers/test_crane.py
CONTAINERS := $(shell grep -lE '"(run|tasks)"' $(filter %.py,$(NODES)))
service = $(addprefix tests/service/,$1)
unit = $(addprefix tests/unit/,$1)
PARTS := $(CONTAINERS) -- $(filter-out $(CONTAINERS),$(NODES)) -- $(call service,own traces) -- $(call service,snapshots) -- \
	$(call service,gc metadata) -- $(call service,etcd fleet) -- $(call service,tasks) -- $(call service,diff)
PARTS += -- $(filter-out $(PARTS) %/images %/gateway %/kit %__pycache__,$(wildcard tests/service/*)) -- $(call service,images) -- \
	$(call service,gateway kit) -- tests/fuzz tests/fleets -- $(call unit,client deploy erofs) -- $(call unit,etcd fleet gc kit metadata)
PARTS += -- $(filter-out $(PARTS) %__pycache__,$(wildcard tests/unit/*))
# The tests of the second transport: the kit, the gateway and one service behind it, and a node whose calls cross every process.
GRPCIO := tests/service/snapshots/test_snapshotters.py -- tests/service/content -- \
	$(addprefix tests/node/test_node_,api.py snapshots.py writes.py) -- tests/service/kit -- tests/node/test_node_pulls.py -- \
	tests/node/test_node_transfers.py -- tests/node/test_node_killed_processes.py -- $(call service,gateway events)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {
	  line = sprintf("  make %-16s", $$1)
	  count = split($$2, words, " ")
	  for (i = 1; i <= count; i++) {
	    if (length(line " " words[i]) > 100) { print line; line = sprintf("%23s", "") }
	    line = line " " words[i]
	  }
	  print line
	}' $(MAKEFILE_LIST)
	echo "  ROOT=DIR STATE=DIR CONFIG=FILE choose the node for up, down, status and demo"

##-- the node

.PHONY: up
up: run-machine $(BIN)/splitd $(VENV)/splitd.8 ## start a node: install what is missing, make .venv, start the node, wait until it is healthy
	@$(BIN)/splitd up $(WHERE)

.PHONY: down
down: $(BIN)/splitd ## stop the node; containers keep running
	@$(BIN)/splitd down $(WHERE)

.PHONY: status
status: $(BIN)/splitd ## show the state of the node's services
	@$(BIN)/splitd status $(WHERE)

.PHONY: demo
demo: demo-machine $(BIN)/splitd ## build an image, serve it on loopback, pull it with ctr through the node, run it
	@$(BIN)/python -m deploy.demo $(WHERE)

PREFIX ?= /usr/local
.PHONY: install uninstall
install: $(BIN)/splitd $(VENV)/splitd.8 ## put the command splitd, its man page and TAB completion into PREFIX=/usr/local, as links into this directory
	@mkdir -p $(PREFIX)/bin $(PREFIX)/share/man/man8 $(PREFIX)/share/bash-completion/completions $(PREFIX)/share/zsh/site-functions $(PREFIX)/share/fish/vendor_completions.d
	ln -sf "$(CURDIR)/$(BIN)/splitd" $(PREFIX)/bin/splitd
	ln -sf "$(CURDIR)/$(VENV)/splitd.8" $(PREFIX)/share/man/man8/splitd.8
	$(BIN)/splitd completion bash >$(PREFIX)/share/bash-completion/completions/splitd
	$(BIN)/splitd completion zsh >$(PREFIX)/share/zsh/site-functions/_splitd
	$(BIN)/splitd completion fish >$(PREFIX)/share/fish/vendor_completions.d/splitd.fish
uninstall: ## remove what install and install-systemd made; the node must be down; its files stay
	@if systemctl is-active -q splitd 2>/dev/null; then echo "splitd.service runs: systemctl disable --now splitd first" >&2; exit 1; fi
	@if [ -x $(BIN)/splitd ]; then code=0; $(BIN)/splitd status >/dev/null 2>&1 || code=$$?; [ $$code = 3 ] || { echo "a node is up: $(BIN)/splitd down first" >&2; exit 1; }; fi
	rm -f $(PREFIX)/bin/splitd $(PREFIX)/share/man/man8/splitd.8 $(PREFIX)/share/bash-completion/completions/splitd $(PREFIX)/share/zsh/site-functions/_splitd
	rm -f $(PREFIX)/share/fish/vendor_completions.d/splitd.fish /etc/systemd/system/splitd.service
	if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi

# The man page is made of the command's parser, again whenever that changes.
$(VENV)/splitd.8: $(wildcard deploy/*.py deploy/verbs/*.py) | $(BIN)/splitd
	@$(BIN)/splitd help --man >$@

.PHONY: install-systemd
install-systemd: run-machine install ## let systemd start the node at boot (splitd.service)
	@[ "$$(id -u)" = 0 ] || { echo "make install-systemd writes to /etc/systemd/system: run it as root" >&2; exit 1; }
	sed "s|@SPLITD@|$(CURDIR)/$(BIN)/splitd|" deploy/splitd.service >/etc/systemd/system/splitd.service
	if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
	echo "installed; now: systemctl enable --now splitd"

.PHONY: deb
deb: run-machine ## build a Debian package in dist/: splitd below /opt/splitd, the command, its man page, the systemd unit and /etc/default/splitd
	@deploy/deb

##-- development

.PHONY: test
test: $(VENV)/dev test-machine peers ## run all tests, four parts at a time; needs root
	@$(SIDE_BY_SIDE) $(PARTS) -- $(ARGS)

.PHONY: test-unit test-service test-node test-crash test-crash-etcd test-strangers test-grpcio
test-unit: $(VENV)/dev ## run the tests without processes; takes seconds
	@$(PYTEST) tests/unit $(ARGS)
test-service: $(VENV)/dev test-machine peers ## test each service as a process of its own
	@$(PYTEST) tests/service $(ARGS)
test-node: $(VENV)/dev test-machine ## test a whole node under supervisord, driven by ctr; needs root
	@$(PYTEST) tests/node $(ARGS)
test-crash: $(VENV)/dev test-machine ## test kill -9 at bad moments; needs root
	@$(PYTEST) tests/crash $(ARGS)
test-crash-etcd: $(VENV)/dev test-machine ## the same on nodes whose records are in etcd; needs root
	@CRASH_STORE=etcd $(PYTEST) tests/crash $(ARGS)
test-strangers: $(VENV)/dev test-machine peers ## test with malformed frames, hostile clients, and go-containerregistry's crane; needs root
	@$(PYTEST) $(STRANGERS) $(ARGS)
test-grpcio: $(VENV)/dev test-machine ## test grpcio as the transport (SPLITD_GRPC_TRANSPORT=grpcio make test runs all tests on it); needs root
	@SPLITD_GRPC_TRANSPORT=grpcio $(SIDE_BY_SIDE) $(GRPCIO) -- -m "not once" $(ARGS)

.PHONY: peers-check
peers-check: $(VENV)/dev test-machine peers $(PEERS)/more $(PEERS)/nerdctl ## run other people's clients and registries, unmodified, on a node and on containerd (SPLITD_TEST_CONTAINERD2=DIR: where containerd 2 and its ctr are; without it nerdctl is not run); needs root, builds for minutes (Go 1.26)
	@$(PYTEST) tests/peers $(ARGS)

.PHONY: lazy-check
lazy-check: $(VENV)/dev test-machine $(PEERS)/stargz ## pull lazily with other people's snapshotters (docs/works-with.md); those whose programs are in PATH or SPLITD_TEST_LAZY=DIR; needs root, builds for minutes (Go 1.26)
	@PATH="$(CURDIR)/$(PEERS):$$PATH" $(PYTEST) tests/peers/test_peers_lazy.py $(ARGS)

.PHONY: fuzz
fuzz: SECONDS ?= 600
fuzz: $(VENV)/dev ## fuzz our gRPC and JSON, the collector and tasks among clients, for SECONDS=600, from SEED (default: a new one each time)
	@FUZZ_SECONDS=$(SECONDS) FUZZ_SEED=$${SEED:-$$RANDOM$$RANDOM} $(PYTEST) tests/fuzz --timeout $$(($(SECONDS) + 300)) $(ARGS)

.PHONY: hostile
hostile: SECONDS ?= 300
hostile: $(VENV)/dev test-machine ## run hostile clients, registries and images against a node, and time honest ones beside them, for SECONDS=300, from SEED (default: a new one each time); needs root
	@HOSTILE_SECONDS=$(SECONDS) HOSTILE_SEED=$${SEED:-$$RANDOM$$RANDOM} $(PYTEST) tests/hostile -s --timeout $$(($(SECONDS) + 300)) $(ARGS)

.PHONY: layer-chains
layer-chains: CHAINS ?= 500
layer-chains: $(VENV)/dev test-machine ## unpack CHAINS=500 random chains of layers by Transfer, Diff.Apply and containerd, and compare the trees; needs root
	@LAYER_CHAINS=$(CHAINS) $(PYTEST) tests/node/test_node_layer_chains.py --timeout 1800 $(ARGS)

.PHONY: upgrade
upgrade: RELEASE ?= $(shell git describe --tags --abbrev=0 2>/dev/null)
upgrade: $(VENV)/dev test-machine ## upgrade a node from RELEASE (a commit; default: the newest tag) to this one and back, with ten containers running and a pull under way; needs root
	@[ -n "$(RELEASE)" ] || { echo "no release to come from: this clone has no tags; make upgrade RELEASE=COMMIT" >&2; exit 1; }
	git rev-parse -q --verify "$(RELEASE)^{commit}" >/dev/null || { echo "no such release: $(RELEASE)" >&2; exit 1; }
	UPGRADE_FROM=$(RELEASE) $(PYTEST) tests/node/test_node_upgrade.py -s $(ARGS)

.PHONY: slow-pulls
slow-pulls: $(VENV)/dev test-machine ## make pulls slow in many ways, one at a time (ARGS='NAME ...': only these), and check that the verdict of each names the cause; needs root, takes minutes
	@$(BIN)/python -m tests.slowpulls $(ARGS)

.PHONY: fleet-harms
fleet-harms: $(VENV)/dev test-machine ## kill each process and each node of a fleet of three, each member of its etcd, and cut the network between any two, each in the middle of pulls; half an hour; needs root
	@FLEET_HARMS=all $(PYTEST) tests/fleets/test_fleet_nodes.py $(ARGS)

.PHONY: powercut
powercut: CUTS ?= 50
powercut: $(VENV)/dev test-machine ## cut the power CUTS=50 times during pulls, commits and writes, from SEED (default: a new one each time), and check that nothing answered is lost; needs root, loop devices and XFS
	@POWERCUTS=$(CUTS) POWERCUT_SEED=$${SEED:-$$RANDOM$$RANDOM} $(PYTEST) tests/crash/test_crash_power.py -s --timeout $$(($(CUTS) * 60)) $(ARGS)

.PHONY: traces-bound
traces-bound: PULLS ?= 10000
traces-bound: $(VENV)/dev ## send the spans of PULLS=10000 pulls to the traces service, and check that its store stays within SIZE=67108864 bytes and has the newest
	@TRACES_PULLS=$(PULLS) TRACES_SIZE=$${SIZE:-67108864} $(PYTEST) tests/service/traces/test_traces_bound.py --timeout 600 $(ARGS)

.PHONY: check
check: $(VENV)/dev test-machine ## check with ruff and mypy, and check that generated modules are fresh, that our API equals containerd's, and the import rules
	@$(BIN)/ruff format --check --quiet . || { echo "not formatted: $(BIN)/ruff format ." >&2; exit 1; }
	$(BIN)/ruff check .
	{ $(BIN)/mypy services gateway deploy client conform splitd examples bench tests; $(BIN)/mypy --scripts-are-modules scripts/build_nerdctl scripts/compare_api scripts/protos scripts/screenshots; } & types=$$!
	$(BIN)/python scripts/protos --check
	$(BIN)/python scripts/compare_api
	$(PYTEST) $(addprefix tests/unit/deploy/test_,imports.py circles.py loops.py)
	wait $$types

.PHONY: bench
bench: $(VENV)/dev bench-machine peers ## measure beside Debian's containerd (ARGS=--pulls: only pulls; ARGS='--against CHECKOUT': beside an older build; ARGS=--help: more); needs root, takes an hour
	@$(BIN)/python -m bench $(ARGS)

.PHONY: screenshots
screenshots: $(VENV)/dev test-machine ## take the pictures of the traces' page in docs/ anew, with chromium, of a node that pulls; needs root
	@$(BIN)/python scripts/screenshots

.PHONY: peers
peers: $(PEERS)/built ## build the Go programs that the interop tests and the benchmark use

.PHONY: protos
protos: $(VENV)/dev ## generate the protobuf modules beside their .proto files
	@$(BIN)/python scripts/protos

.PHONY: lock
lock: ## pin the newest versions of the dependencies in pyproject.toml, in requirements.lock and requirements-dev.lock
	@tools=$$(mktemp -d)
	trap 'rm -rf "$$tools"' EXIT
	$(PYTHON) -m venv "$$tools" && "$$tools/bin/pip" install -q pip-tools
	compile() { "$$tools/bin/pip-compile" -q --upgrade --generate-hashes --allow-unsafe --strip-extras --no-header --no-emit-index-url --no-emit-trusted-host --no-emit-find-links "$$@" pyproject.toml; }
	compile -o requirements.lock
	compile --extra dev -c requirements.lock -o requirements-dev.lock

.PHONY: clean
clean: ## remove what was built here; nodes and their files stay
	@# Looks for a process with exactly this argument; grep's own argument has more around it. Reads /proc, since not every machine has pgrep.
	used=$$(grep -zlsxF --regexp="$(CURDIR)/$(BIN)/python" /proc/[0-9]*/cmdline || true)
	if [ -n "$$used" ]; then
	  echo "a node (or another process: $$(echo $$used | sed 's|/proc/\([0-9]*\)/cmdline|\1|g')) runs from $(VENV): make down first" >&2; exit 1
	fi
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

##-- prerequisites of the other targets

.PHONY: run-machine demo-machine test-machine bench-machine
run-machine demo-machine test-machine bench-machine:
	@deploy/machine $(@:-machine=)

# The environment follows the lock file: it is updated when that differs from the one that was installed.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11: make up PYTHON=/usr/bin/python3.11" >&2; exit 1; }
	echo "making $(VENV)"
	$(PYTHON) -m venv $(VENV)

.PHONY: always
$(BIN)/splitd: $(BIN)/python always
	@if ! cmp -s requirements.lock $(VENV)/run; then
	  echo "installing requirements.lock into $(VENV)"
	  $(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	  cp requirements.lock $(VENV)/run
	fi
	[ -x $@ ] || { printf '#!/bin/sh\nPYTHONPATH="%s" exec "%s/python" -P -m deploy "$$@"\n' "$(CURDIR)" "$(CURDIR)/$(BIN)" >$@; chmod 755 $@; }

$(VENV)/dev: $(BIN)/splitd requirements-dev.lock
	@if ! cmp -s requirements-dev.lock $@; then
	  echo "installing requirements-dev.lock into $(VENV)"
	  $(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.lock
	  cp requirements-dev.lock $@
	fi

# Go programs, with the versions and hashes of tests/interop/peers: built once, and again when those change.
$(PEERS)/built: $(wildcard tests/interop/peers/* tests/interop/peers/chat/* tests/interop/peers/gojson/* tests/peers/crane/* bench/caller/*) | test-machine
	@echo "building grpc-go's interop client and server, h2spec, crane and bench/caller in $(PEERS)"
	mkdir -p $(PEERS)
	cd tests/interop/peers
	GOBIN="$(CURDIR)/$(PEERS)" go install $$(sed -n 's/.*_ "\(.*\)"/\1/p' peers.go) ./chat ./gojson
	cd "$(CURDIR)/bench/caller"
	GOBIN="$(CURDIR)/$(PEERS)" go install .
	cd "$(CURDIR)/tests/peers/crane"
	GOBIN="$(CURDIR)/$(PEERS)" go install $$(sed -n 's/.*_ "\(.*\)"/\1/p' peers.go)
	touch "$(CURDIR)/$@"

# Go programs that only peers-check uses.
$(PEERS)/more: $(wildcard tests/peers/distribution/* tests/peers/nethttp/*) | $(VENV)/dev test-machine
	@echo "building the registry of distribution and tests/peers/nethttp in $(PEERS)"
	mkdir -p $(PEERS)
	cd tests/peers/distribution
	GOBIN="$(CURDIR)/$(PEERS)" go install $$(sed -n 's/.*_ "\(.*\)"/\1/p' peers.go)
	cd "$(CURDIR)/tests/peers/nethttp"
	GOBIN="$(CURDIR)/$(PEERS)" go install .
	touch "$(CURDIR)/$@"

$(PEERS)/stargz: $(wildcard tests/peers/stargz/*) | $(VENV)/dev test-machine
	@echo "building stargz-snapshotter in $(PEERS)"
	mkdir -p $(PEERS)
	cd tests/peers/stargz
	go build -o "$(CURDIR)/$(PEERS)/containerd-stargz-grpc" .
	touch "$(CURDIR)/$@"

$(PEERS)/nerdctl: scripts/build_nerdctl | $(VENV)/dev test-machine
	@echo "building nerdctl in $(PEERS)"
	scripts/build_nerdctl $@
