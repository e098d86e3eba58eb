//! SHA-256, for the digests of requests, tokens and pod templates and for the names of records.

use ring::digest::{SHA256, digest};

/// SHA-256 in hexadecimal, 64 characters.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
