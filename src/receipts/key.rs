//! The keys of receipts: ed25519 (RFC 8032), in PEM as OpenSSL writes them. Reads no files and knows no receipt.

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use tokio_rustls::rustls::pki_types::{
    PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer, pem::PemObject,
};

use crate::contract::digest::sha256;

/// What precedes the 32 bytes of the key in the SubjectPublicKeyInfo of an ed25519 key (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A private key.
pub(crate) struct SigningKey {
    pair: Ed25519KeyPair,
    id: String,
}

impl SigningKey {
    /// The unencrypted key of a PEM text, in PKCS#8.
    ///
    /// # Errors
    /// The end of the sentence "the key ...".
    pub(crate) fn from_pem(text: &str) -> Result<Self, &'static str> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes())
            .map_err(|_| "has no unencrypted PEM private key")?;
        // OpenSSL writes the private key alone; ring computes the public one.
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der())
            .map_err(|_| "is not an ed25519 key in PKCS#8")?;
        let id = id_of(pair.public_key().as_ref());
        Ok(SigningKey { pair, id })
    }

    /// SHA-256 of the public key's SubjectPublicKeyInfo in DER, in hexadecimal.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The signature of these bytes, 64 bytes.
    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

/// A public key.
pub(crate) struct VerifyingKey {
    bytes: [u8; 32],
    id: String,
}

impl VerifyingKey {
    /// The key of a PEM text.
    ///
    /// # Errors
    /// The end of the sentence "the key ...".
    pub(crate) fn from_pem(text: &str) -> Result<Self, &'static str> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(text.as_bytes()).map_err(|_| {
            "has no PEM public key; `openssl pkey -in PRIVATE -pubout` prints that of a private key"
        })?;
        let bytes = der.as_ref().strip_prefix(&SPKI_PREFIX).and_then(|it| it.try_into().ok());
        let bytes: [u8; 32] = bytes.ok_or("is not an ed25519 key")?;
        Ok(VerifyingKey { id: id_of(&bytes), bytes })
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Whether this is the signature of these bytes by this key.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.bytes).verify(message, signature).is_ok()
    }
}

/// SHA-256 of the SubjectPublicKeyInfo in DER, in hexadecimal: `openssl pkey -pubin -outform DER | sha256sum`.
fn id_of(public: &[u8]) -> String {
    sha256(&[&SPKI_PREFIX, public].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first key of RFC 8032, section 7.1, as OpenSSL writes it.
    const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n\
        -----END PRIVATE KEY-----\n";

    #[test]
    fn a_key_that_is_not_one_is_refused_without_its_text() {
        for text in ["", "hunter2", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"]
        {
            let what = SigningKey::from_pem(text).err().expect("is refused");
            assert!(!what.contains("hunter2"));
            assert!(VerifyingKey::from_pem(text).is_err());
        }
        assert!(VerifyingKey::from_pem(PRIVATE).is_err());
    }
}
