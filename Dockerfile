# The image: one static program, the public certificate authorities, nothing else. It runs as nobody in
# particular on a root that may be read-only; `serve` needs a writable /tmp, which the platform gives:
#
#   docker build --tag action-executor .
#   echo '{"type":"restart_k8s","parameters":{"deployment":"web"}}' | docker run -i --rm action-executor
#   docker run --rm --read-only --tmpfs /tmp --publish 127.0.0.1:8000:8000 action-executor \
#     serve --bind 0.0.0.0:8000 --insecure-open
#
# On Kubernetes that is an emptyDir at /tmp, as in the chart. Every stage but the last runs on the
# builder's own architecture and compiles for the image's, so nothing is emulated.

ARG RUST_VERSION=1.95.0
ARG PYTHON_VERSION=3.13.7

# Python only unpacks Zig, whose digest is checked.
FROM --platform=$BUILDPLATFORM python:${PYTHON_VERSION}-slim-trixie AS zig
COPY release/requirements.txt /
RUN python3 -m pip install --no-cache-dir --no-compile --no-deps --only-binary :all: --require-hashes \
    --root-user-action ignore --target /zig --requirement /requirements.txt

FROM --platform=$BUILDPLATFORM rust:${RUST_VERSION}-slim-trixie AS sources
RUN rustup target add x86_64-unknown-linux-musl aarch64-unknown-linux-musl
COPY --from=zig /zig/ziglang /opt/zig
# A cache mount rather than cargo-chef: nothing more to install, and a change recompiles only what it
# concerns. Cargo's whole home is in it, because Cargo's lock is.
ENV ZIG=/opt/zig/zig CARGO_HOME=/cache/cargo CARGO_TARGET_DIR=/cache/target ZIG_GLOBAL_CACHE_DIR=/cache/zig
WORKDIR /src
COPY . .

FROM sources AS build
ARG TARGETARCH
ARG SOURCE_DATE_EPOCH=0
RUN --mount=type=cache,target=/cache,id=action-executor-$TARGETARCH release/root action-executor /image

FROM sources AS build-lambda
ARG TARGETARCH
ARG SOURCE_DATE_EPOCH=0
RUN --mount=type=cache,target=/cache,id=action-executor-$TARGETARCH release/root bootstrap /image

# For functions from images: docker build --target lambda .
FROM scratch AS lambda
LABEL org.opencontainers.image.title="action-executor for AWS Lambda" \
      org.opencontainers.image.description="One request in, one checked Kubernetes action done at most once, one answer out" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build-lambda /image/ /
USER 65532:65532
ENTRYPOINT ["/bootstrap"]

FROM scratch
# The version, the revision, the source and the time come from the build: `make image`.
LABEL org.opencontainers.image.title="action-executor" \
      org.opencontainers.image.description="One request in, one checked Kubernetes action done at most once, one answer out" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /image/ /
USER 65532:65532
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 CMD ["/action-executor", "healthcheck"]
ENTRYPOINT ["/action-executor"]
