//! The envelope of a receipt: DSSE (<https://github.com/secure-systems-lab/dsse>), on one line of JSON with one signature.
//! Knows nothing of what it carries.
//!
//! The envelope itself is not signed. So it is read more strictly than DSSE demands: it is what [`sign`] writes, byte
//! for byte, or it is refused. A field or a signature that nobody verifies would otherwise pass as a part of the
//! receipt.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};

use crate::{
    contract::json::strict_object,
    receipts::key::{SigningKey, VerifyingKey},
};

/// The media type of an in-toto Statement.
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    payload: String,
    #[serde(rename = "payloadType")]
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signature {
    keyid: String,
    sig: String,
}

/// A payload whose signature is verified.
pub(crate) struct Opened {
    pub payload: Vec<u8>,
    pub key_id: String,
}

/// The envelope of this payload, without the line's end.
pub(crate) fn sign(key: &SigningKey, payload: &[u8]) -> String {
    let sig = BASE64_STANDARD.encode(key.sign(&pre_authentication_encoding(payload)));
    let envelope = Envelope {
        payload: BASE64_STANDARD.encode(payload),
        payload_type: PAYLOAD_TYPE.to_owned(),
        signatures: vec![Signature { keyid: key.id().to_owned(), sig }],
    };
    // Plain data always serializes.
    serde_json::to_string(&envelope).unwrap_or_default()
}

/// Opens the envelope on this line with the key that it names.
///
/// # Errors
/// Why it is not valid, in a sentence without its end.
pub(crate) fn open(line: &str, keys: &[VerifyingKey]) -> Result<Opened, String> {
    let mut json = serde_json::Deserializer::from_str(line);
    let envelope: Envelope = strict_object(&mut json)
        .and_then(|envelope| json.end().map(|()| envelope))
        .map_err(|error| match error.is_eof() {
            true => "the line ends too early: it was cut".to_owned(),
            false => format!("the line is not a DSSE envelope: {error}"),
        })?;
    // JSON has many forms of one value, and serde takes lists for structs.
    let line = line.strip_suffix('\r').unwrap_or(line);
    if serde_json::to_string(&envelope).ok().as_deref() != Some(line) {
        return Err("the line is not in the form in which receipts are written".to_owned());
    }
    if envelope.payload_type != PAYLOAD_TYPE {
        return Err(format!("the payloadType is not {PAYLOAD_TYPE}"));
    }
    let [signature] = envelope.signatures.as_slice() else {
        return Err(format!("it has {} signatures and not one", envelope.signatures.len()));
    };
    let Some(key) = keys.iter().find(|key| key.id() == signature.keyid) else {
        return Err("its keyid is that of no given key".to_owned());
    };
    let decoded = |text: &str, what: &str| {
        BASE64_STANDARD.decode(text).map_err(|_| format!("the {what} is not base64"))
    };
    let payload = decoded(&envelope.payload, "payload")?;
    let signature = decoded(&signature.sig, "signature")?;
    match key.verifies(&pre_authentication_encoding(&payload), &signature) {
        true => Ok(Opened { payload, key_id: key.id().to_owned() }),
        false => Err("the signature is not that of the payload by this key".to_owned()),
    }
}

/// What is signed: PAE of DSSE v1.
fn pre_authentication_encoding(payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    // The first key of RFC 8032, section 7.1.
    const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n\
        -----END PRIVATE KEY-----\n";
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n\
        -----END PUBLIC KEY-----\n";

    fn keys() -> (SigningKey, Vec<VerifyingKey>) {
        let public = VerifyingKey::from_pem(PUBLIC).expect("is a key");
        (SigningKey::from_pem(PRIVATE).expect("is a key"), vec![public])
    }

    #[test]
    fn the_encoding_that_is_signed_is_that_of_dsse() {
        let encoded = pre_authentication_encoding(b"hello world");
        assert_eq!(encoded, b"DSSEv1 28 application/vnd.in-toto+json 11 hello world");
    }

    #[test]
    fn a_signed_envelope_opens_with_its_public_key() {
        let (private, public) = keys();
        assert_eq!(private.id(), public[0].id());
        let opened = open(&sign(&private, b"{}"), &public).expect("is valid");
        assert_eq!((opened.payload.as_slice(), opened.key_id.as_str()), (&b"{}"[..], private.id()));
    }

    #[test]
    fn a_change_of_any_byte_is_noticed() {
        let (private, public) = keys();
        let line = sign(&private, br#"{"outcome":"applied"}"#);
        for at in 0..line.len() {
            for with in [b'A', b'B', b'"', b' ', b'=', b'0'] {
                let mut changed = line.clone().into_bytes();
                if changed[at] == with {
                    continue;
                }
                changed[at] = with;
                let changed = String::from_utf8(changed).expect("is ASCII");
                assert!(open(&changed, &public).is_err(), "{changed}");
            }
            assert!(open(&line[..at], &public).is_err(), "{}", &line[..at]);
        }
    }

    #[test]
    fn an_envelope_of_another_form_is_refused_with_its_reason() {
        let (private, public) = keys();
        let line = sign(&private, b"{}");
        let twice =
            line.replace(r#""signatures":[{"#, r#""signatures":[{"keyid":"x","sig":"x"},{"#);
        let again = line.replace(r#"{"payload":"#, r#"{"payload":"e30=","payload":"#);
        let more = line.replace(r#"{"payload":"#, r#"{"note":"x","payload":"#);
        let none =
            r#"{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":[]}"#;
        let mut renamed = String::from(&line);
        renamed.replace_range(line.find("in-toto").map_or(0..0, |at| at..at + 7), "in-tot0");
        for (line, reason) in [
            (twice.as_str(), "2 signatures"),
            (&again, "duplicate field"),
            (&more, "unknown field"),
            (none, "0 signatures"),
            (&renamed, "payloadType"),
            (&line.replace(private.id(), &"0".repeat(64)), "keyid"),
            (&line[..40], "ends too early"),
            ("", "ends too early"),
            (&format!("{line} {line}"), "trailing characters"),
            ("[]", "expected an object"),
        ] {
            let why = open(line, &public).err().expect("is refused");
            assert!(why.contains(reason), "{why}: {line}");
        }
    }

    #[test]
    fn an_envelope_of_another_spelling_is_refused() {
        let (private, public) = keys();
        let line = sign(&private, br#"{"outcome":"applied"}"#);
        let envelope: Envelope = serde_json::from_str(&line).expect("is one");
        let Envelope { payload, signatures, .. } = &envelope;
        let Signature { keyid, sig } = &signatures[0];
        let object = format!(r#"[{{"keyid":"{keyid}","sig":"{sig}"}}]"#);
        for other in [
            line.replace(&object, &format!(r#"[["{keyid}","{sig}"]]"#)),
            line.replace(&object, &format!(r#"[{{"sig":"{sig}","keyid":"{keyid}"}}]"#)),
            format!(
                r#"{{"payloadType":"{PAYLOAD_TYPE}","payload":"{payload}","signatures":{object}}}"#
            ),
            line.replace("payloadType", r"payload\u0054ype"),
            line.replace("application/", r"application\/"),
            line.replace(',', ", "),
            format!(" {line}"),
            format!("{line} "),
            format!("{line}\r\r"),
        ] {
            assert_ne!(other, line);
            let why = open(&other, &public).err().expect("is refused");
            assert!(why.contains("not in the form"), "{why}: {other}");
        }
        assert!(open(&format!("{line}\r"), &public).is_ok());
    }

    #[test]
    fn another_key_opens_nothing() {
        let (private, _) = keys();
        assert!(open(&sign(&private, b"{}"), &[]).is_err());
    }
}
