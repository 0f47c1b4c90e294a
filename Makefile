# Everything that is built, tested and measured here. `make help` lists it.

GO ?= go
BIN := .bin
LINT_VERSION := $(shell sed -n 's/.*golangci-lint\/v2 \(v[^ ]*\).*/\1/p' tools/go.mod | head -n 1)
LINT := $(BIN)/golangci-lint-$(LINT_VERSION)

# How long each fuzz target runs, how often torture kills the broker, how many seeds
# are simulated (or which one, with what happens in it), and which broker the
# interop programs meet (empty: a sluice of their own).
FUZZTIME ?= 10s
KILLS ?= 30
SEEDS ?= 200
SEED ?=
AMQP_URL ?=

# Which scenarios of flat run (empty: all), and flags for it, such as -backlog 100000000.
ONLY ?=
FLAGS ?=

.DEFAULT_GOAL := help

.PHONY: help
help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

.PHONY: build
build: ## build the program into .bin/sluice
	$(GO) build -o $(BIN)/sluice ./cmd/sluice

.PHONY: test
test: ## all tests, as the README says
	$(GO) test ./...

.PHONY: race
race: ## all tests under the race detector
	$(GO) test -race ./...

.PHONY: fuzz-smoke
fuzz-smoke: ## each fuzz target for FUZZTIME (10s)
	bash tools/fuzz-smoke.sh $(FUZZTIME)

.PHONY: lint
lint: $(LINT) ## linters, formatters, go.mod; the house rules are tests in internal/lint
	$(GO) mod tidy -diff
	$(LINT) run --allow-serial-runners ./...

# Built from source in the version that tools/go.mod pins; takes minutes once.
$(LINT): tools/go.mod tools/go.sum
	cd tools && $(GO) build -o ../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	@touch $@

.PHONY: interop
interop: ## unmodified clients in Go, Python and Node, and the code of the documents
	$(GO) run ./test/interop/cmd/interop $(if $(AMQP_URL),-url $(AMQP_URL))

.PHONY: torture
torture: ## kill the broker KILLS times (30) under load, check what it promised
	$(GO) run ./internal/torture/cmd/torture -kills $(KILLS)

.PHONY: sim
sim: ## simulate SEEDS runs (200) of clusters with faults, or the one of SEED with KIND
	$(GO) run ./internal/sim/cmd/sim $(if $(SEED),-seed $(SEED) -v,-seeds $(SEEDS)) $(if $(KIND),-kind $(KIND))

.PHONY: flat
flat: ## which costs stay flat as something grows; ONLY=name,... for some of the scenarios
	$(GO) run ./test/flat/cmd/flat $(if $(ONLY),-only $(ONLY)) $(FLAGS)

.PHONY: planted
planted: ## put bugs in, one at a time: the simulation must find each
	$(GO) test -tags plantedbugs -count 1 ./internal/sim -run Planted -v

.PHONY: compare-amqp
compare-amqp: ## sluice and RabbitMQ in turns under the same load; installs RabbitMQ from Debian
	bash test/compare/compare-amqp.sh

.PHONY: bench
bench: build ## benchmarks with allocations of every package; then one load on a fresh broker
	$(GO) test -run '^$$' -bench . -benchmem -benchtime 0.2s ./internal/...
	bash tools/bench-serve.sh $(BIN)/sluice

.PHONY: ci
ci: ## all of the above that a change must pass, as it runs for every change
	bash .ci/run

.PHONY: clean
clean: ## remove what was built
	rm -rf $(BIN)
