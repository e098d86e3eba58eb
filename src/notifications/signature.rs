//! The signature of a notification, by Standard Webhooks
//! (<https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>). Knows nothing of what is
//! signed.

use base64::{Engine, prelude::BASE64_STANDARD};
use ring::hmac;

use crate::{
    config::reload::{File, FromFiles},
    contract::error::{ActionError, Code},
};

/// What a secret begins with.
const PREFIX: &str = "whsec_";

/// The length of a secret, in bytes, as Standard Webhooks demands it.
const LENGTHS: std::ops::RangeInclusive<usize> = 24..=64;

/// The secrets of the sink: one, or while it is replaced the new and the old one.
pub(crate) struct Secrets(Vec<hmac::Key>);

impl FromFiles for Secrets {
    const NAME: &'static str = "the secret of the sink";

    /// Each line of the file is a secret.
    fn from_files(files: &[File]) -> Result<Self, ActionError> {
        let lines = files.iter().flat_map(|file| file.text.lines()).map(str::trim);
        let keys: Option<Vec<_>> = lines.filter(|line| !line.is_empty()).map(key).collect();
        match keys {
            Some(keys) if !keys.is_empty() => Ok(Secrets(keys)),
            _ => {
                let path = files.first().map(|file| file.path.display().to_string());
                let path = path.unwrap_or_default();
                let detail = format!(
                    "the file {path} must have a secret of the sink on each line: {PREFIX} and the base64 of {} to \
                     {} bytes",
                    LENGTHS.start(),
                    LENGTHS.end()
                );
                Err(ActionError::new(Code::Configuration, detail)
                    .with_hint("make one with `echo \"whsec_$(openssl rand -base64 32)\"`"))
            }
        }
    }
}

fn key(line: &str) -> Option<hmac::Key> {
    let bytes = BASE64_STANDARD.decode(line.strip_prefix(PREFIX)?).ok()?;
    LENGTHS.contains(&bytes.len()).then(|| hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

impl Secrets {
    /// The value of `webhook-signature`: a signature by each secret; `at` is in seconds since 1970.
    pub(crate) fn sign(&self, id: &str, at: i64, body: &[u8]) -> String {
        let signed = [format!("{id}.{at}.").as_bytes(), body].concat();
        let each = self
            .0
            .iter()
            .map(|key| format!("v1,{}", BASE64_STANDARD.encode(hmac::sign(key, &signed))));
        each.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(text: &str) -> Result<Secrets, ActionError> {
        Secrets::from_files(&[File { path: "secret".into(), text: text.to_owned() }])
    }

    #[test]
    fn the_signature_is_that_of_the_example_of_standard_webhooks() {
        let secrets = secrets("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").expect("is one");
        let signature =
            secrets.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn each_secret_of_the_file_signs() {
        let one = format!("whsec_{}", BASE64_STANDARD.encode([1; 24]));
        let two = format!("whsec_{}", BASE64_STANDARD.encode([2; 64]));
        let both = secrets(&format!("{one}\n\n{two}\n")).expect("are two").sign("i", 1, b"");
        let alone = |text: &str| secrets(text).expect("is one").sign("i", 1, b"");
        assert_eq!(both, format!("{} {}", alone(&one), alone(&two)));
    }

    #[test]
    fn an_invalid_secret_is_refused_and_not_repeated() {
        let short = format!("whsec_{}", BASE64_STANDARD.encode([1; 23]));
        for text in ["", "\n", "hunter2", "whsec_hunter2!", &short] {
            let error = secrets(text).err().expect("is refused");
            assert_eq!(error.code, Code::Configuration);
            assert!(text.trim().is_empty() || !error.detail.contains(text), "{error}");
        }
    }
}
