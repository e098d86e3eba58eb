//! SHA-256, for the digests of requests, tokens and pod templates and for the names of records.

use ring::digest::{SHA256, digest};

/// SHA-256 in hexadecimal, 64 characters.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes)
        .as_ref()
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(hex)
        .collect()
}

/// The digit of four bits. Each request is hashed several times, and `format!` costs three times the hash.
fn hex(four_bits: u8) -> char {
    char::from(b"0123456789abcdef"[usize::from(four_bits)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_in_lowercase_hexadecimal() {
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(b"abc"), expected);
    }
}
