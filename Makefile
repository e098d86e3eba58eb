# Tests, generated files, releases and the image. `make` without a target lists them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
# The time stamp of every built file: the time of the last commit.
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null)
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null)
export SOURCE_DATE_EPOCH VERSION

CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TARGET_DIR
DIST ?= $(CURDIR)/dist
export DIST
TOOLS := $(CARGO_TARGET_DIR)/release-tools
ZIGBUILD ?= $(TOOLS)/zigbuild
export ZIGBUILD

#: The targets of a release
TARGETS ?= x86_64-unknown-linux-musl aarch64-unknown-linux-musl

#: The image: name, tags, platforms, output, the URL of its source, more flags of docker buildx build
IMAGE ?= action-executor
TAG ?= $(VERSION)
PLATFORMS ?=
OUTPUT ?= type=docker
SOURCE ?=
IMAGE_FLAGS ?=

CYCLONEDX_VERSION := 0.5.9

say = echo "$(1)" >&2
# Without SOURCE_DATE_EPOCH: Cargo rebuilds ring, and all that needs it, wherever its value differs from the last build's.
write_generated = env -u SOURCE_DATE_EPOCH UPDATE_GENERATED=1 cargo test --quiet --locked --all-features --test suite --
need = command -v $(1) >/dev/null || { echo "make $@: $(1) is missing: $(2)" >&2; exit 1; }

.PHONY: help
help: ## list the targets and variables
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@awk '/^#: / { printf "\n%s\n", substr($$0, 4); listed = 1 } /^$$/ { listed = 0 } listed && / \?=/ { print "  " $$0 }' $(MAKEFILE_LIST)

.PHONY: check
check: ## run all tests and checks, as CI does
	@env -u SOURCE_DATE_EPOCH .ci/run

.PHONY: generated
generated: jobs chart-rules kustomize reference ## write all generated files

.PHONY: reference
reference: ## write the tables in docs/reference, and tests/data/messages.txt
	@$(call need,cargo,https://rustup.rs)
	@$(write_generated) \
	    links::every_generated_block messages::every_message

.PHONY: jobs
jobs: ## write the Job manifests of the actions in jobs/
	@jobs/render

.PHONY: chart-rules
chart-rules: ## write the chart's files/rules.yaml from the program's RBAC rules
	@$(call need,cargo,https://rustup.rs)
	@$(write_generated) \
	    chart::files_rules_yaml_is_generated_from_the_programs_rules

.PHONY: kustomize
kustomize: ## write the Kustomize base from the chart
	@$(call need,cargo,https://rustup.rs)
	@$(write_generated) \
	    chart::the_kustomize_base_equals

.PHONY: tools
tools: $(TOOLS)/zigbuild/.installed $(TOOLS)/bin/.cyclonedx-$(CYCLONEDX_VERSION) ## install the build tools of a release in target/

$(TOOLS)/zigbuild/.installed: release/requirements.txt
	@$(call need,python3,apt-get install python3-pip)
	@python3 -m pip --version >/dev/null 2>&1 || { echo "make tools: pip is missing: apt-get install python3-pip" >&2; exit 1; }
	@$(call say,cargo-zigbuild and Zig ...)
	@rm -rf $(@D)
	@python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-compile --no-deps \
	    --only-binary :all: --require-hashes --target $(@D) --requirement $< >&2
	@touch $@

$(TOOLS)/bin/.cyclonedx-$(CYCLONEDX_VERSION):
	@$(call need,cargo,https://rustup.rs)
	@$(call say,cargo-cyclonedx $(CYCLONEDX_VERSION) ...)
	@cargo install --quiet --locked --root $(TOOLS) --target-dir $(TOOLS)/build cargo-cyclonedx --version $(CYCLONEDX_VERSION) >&2
	@rm -rf $(TOOLS)/build
	@touch $@

.PHONY: release
release: tools ## build archives, SBOMs and SHA256SUMS in dist/
	@test -n "$$SOURCE_DATE_EPOCH" || { echo "make $@: there is no commit: set SOURCE_DATE_EPOCH" >&2; exit 1; }
	@test -z "$$(git status --porcelain 2>/dev/null)" || $(call say,warning: the build includes changes that are not committed)
	@PATH=$(TOOLS)/bin:$$PATH release/pack $(TARGETS)

.PHONY: lambda
lambda: tools ## build the archives for AWS Lambda in dist/
	@$(call need,zip,apt-get install zip)
	@mkdir -p $(DIST)
	@for target in $(TARGETS); do \
	    directory=$$(mktemp -d); \
	    install -m 0755 "$$(release/build $$target bootstrap)" $$directory/bootstrap; \
	    touch --date="@$$SOURCE_DATE_EPOCH" $$directory/bootstrap; \
	    archive=$(DIST)/action-executor-$(VERSION)-lambda-$${target%%-*}.zip; \
	    rm -f $$archive; \
	    TZ=UTC zip --quiet --junk-paths -X -9 $$archive $$directory/bootstrap; \
	    echo "$$archive: $$(stat -c %s $$archive) bytes" >&2; \
	    rm -r $$directory; \
	done

.PHONY: reproducible
reproducible: tools ## build a release twice and compare byte for byte (slow)
	@release/twice $(TARGETS)

.PHONY: image
image: ## build the image for this machine's platform, or for PLATFORMS=linux/amd64,linux/arm64
	@$(call need,docker,https://docs.docker.com/engine/install)
	@docker buildx version >/dev/null 2>&1 || { echo "make $@: buildx is missing: https://docs.docker.com/go/buildx" >&2; exit 1; }
	@test -n "$$SOURCE_DATE_EPOCH" || { echo "make $@: there is no commit: set SOURCE_DATE_EPOCH" >&2; exit 1; }
	docker buildx build \
	    $(if $(PLATFORMS),--platform $(PLATFORMS)) \
	    --build-arg SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) \
	    --label org.opencontainers.image.version=$(VERSION) \
	    --label org.opencontainers.image.created=$(shell TZ=UTC printf '%(%Y-%m-%dT%H:%M:%SZ)T' $(SOURCE_DATE_EPOCH)) \
	    $(if $(REVISION),--label org.opencontainers.image.revision=$(REVISION)) \
	    $(if $(SOURCE),--label org.opencontainers.image.source=$(SOURCE)) \
	    $(foreach tag,$(TAG),--tag $(IMAGE):$(tag)) \
	    --output $(OUTPUT) $(IMAGE_FLAGS) .

.PHONY: clean
clean: ## remove dist/ (cargo clean removes target/)
	@rm -rf $(DIST)
