# The image: one static program and the public certificate authorities. It runs without root, on a read-only root
# file system:
#
#   docker build --tag action-executor .
#   echo '{"type":"restart_k8s","parameters":{"deployment":"web"}}' | docker run -i --rm action-executor
#   docker run --rm --read-only --publish 127.0.0.1:8000:8000 action-executor \
#     serve --bind 0.0.0.0:8000 --insecure-open
#
# Every stage but the last runs on the builder's own architecture and compiles for the image's, so that nothing is
# emulated.

ARG RUST_VERSION=1.95.0
ARG PYTHON_VERSION=3.13.7

# pip installs cargo-zigbuild and Zig, and checks their hashes.
FROM --platform=$BUILDPLATFORM python:${PYTHON_VERSION}-slim-trixie AS zigbuild
COPY release/requirements.txt /
RUN python3 -m pip install --no-cache-dir --no-compile --no-deps --only-binary :all: --require-hashes \
    --root-user-action ignore --target /zigbuild --requirement /requirements.txt

FROM --platform=$BUILDPLATFORM rust:${RUST_VERSION}-slim-trixie AS sources
RUN rustup target add x86_64-unknown-linux-musl aarch64-unknown-linux-musl
COPY --from=zigbuild /zigbuild /opt/zigbuild
# A cache mount instead of cargo-chef: it needs no further tool, and a change recompiles only what depends on it.
# It contains Cargo's whole home, because it contains Cargo's lock.
ENV ZIGBUILD=/opt/zigbuild CARGO_HOME=/cache/cargo CARGO_TARGET_DIR=/cache/target ZIG_GLOBAL_CACHE_DIR=/cache/zig
WORKDIR /src
COPY . .

# The time stamps of the copied sources are not reliable, and Cargo compares them: touch makes it compile this crate.
FROM sources AS build
ARG TARGETARCH
ARG SOURCE_DATE_EPOCH=0
RUN --mount=type=cache,target=/cache,id=action-executor-$TARGETARCH \
    find src -exec touch {} + && \
    install -D -m 0755 "$(release/build "$TARGETARCH" action-executor)" /image/action-executor && \
    install -D -m 0644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt && \
    find /image -exec touch --date="@$SOURCE_DATE_EPOCH" {} +

FROM sources AS build-lambda
ARG TARGETARCH
ARG SOURCE_DATE_EPOCH=0
RUN --mount=type=cache,target=/cache,id=action-executor-$TARGETARCH \
    find src -exec touch {} + && \
    install -D -m 0755 "$(release/build "$TARGETARCH" bootstrap)" /image/bootstrap && \
    install -D -m 0644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt && \
    find /image -exec touch --date="@$SOURCE_DATE_EPOCH" {} +

# The image of a Lambda function: docker build --target lambda .
FROM scratch AS lambda
LABEL org.opencontainers.image.title="action-executor for AWS Lambda" \
      org.opencontainers.image.description="Runs one checked Kubernetes action, at most once" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build-lambda /image/ /
USER 65532:65532
ENTRYPOINT ["/bootstrap"]

FROM scratch
# `make image` adds the labels of version, revision, source and time.
LABEL org.opencontainers.image.title="action-executor" \
      io.modelcontextprotocol.server.name="io.github.OWNER/action-executor" \
      org.opencontainers.image.description="Runs one checked Kubernetes action, at most once" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /image/ /
USER 65532:65532
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 CMD ["/action-executor", "healthcheck"]
ENTRYPOINT ["/action-executor"]
