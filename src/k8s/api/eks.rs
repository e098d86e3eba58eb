//! The configuration for an EKS cluster without a kubeconfig: its address from the environment, and a
//! token that is a presigned STS request, as `aws eks get-token` makes it. Must not call AWS.
//!
//! The token is `k8s-aws-v1.` and the base64url of the URL of GetCallerIdentity, signed (SigV4, in the
//! query, for 60 s) with the header `x-k8s-aws-id`, which names the cluster
//! ([aws-iam-authenticator](https://github.com/kubernetes-sigs/aws-iam-authenticator#api-authorization-from-outside-a-cluster)).
//! EKS accepts it for 15 minutes.

use std::{
    env,
    time::{Duration, SystemTime},
};

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{
        PercentEncodingMode, SignableBody, SignableRequest, SignatureLocation, SigningParams,
        SigningSettings, sign,
    },
    sign::v4,
};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use kube::{Config, config::AuthInfo};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject};

use crate::contract::error::{ActionError, Code};

/// What SigV4 percent-encodes: all but the unreserved characters of RFC 3986.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// How long the presigned URL is valid.
const TOKEN_TTL: Duration = Duration::from_secs(60);

struct Eks {
    name: String,
    endpoint: String,
    /// The certificate authority, PEM.
    ca: Vec<u8>,
    region: String,
    credentials: Credentials,
}

/// The name of the cluster in `EKS_CLUSTER_NAME`, and its configuration with a new token; none if the variable is
/// not set.
///
/// # Errors
/// [`Code::Configuration`] with the name of the missing or wrong variable, never its value.
pub(crate) fn config() -> Result<Option<(String, Config)>, ActionError> {
    let found = Eks::from_vars(&|name| env::var(name).ok().filter(|value| !value.is_empty()))?;
    let Some(eks) = found else { return Ok(None) };
    let config = eks.config(SystemTime::now())?;
    Ok(Some((eks.name, config)))
}

impl Eks {
    fn from_vars(get: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>, ActionError> {
        let Some(name) = get("EKS_CLUSTER_NAME") else { return Ok(None) };
        let need = |variable: &str| {
            get(variable).ok_or_else(|| wrong(variable, "is missing; EKS_CLUSTER_NAME requires it"))
        };
        let ca = need("EKS_CLUSTER_CA")?;
        let ca = BASE64_STANDARD.decode(ca.trim());
        Ok(Some(Eks {
            name,
            endpoint: need("EKS_CLUSTER_ENDPOINT")?,
            ca: ca.map_err(|_| wrong("EKS_CLUSTER_CA", "is not base64"))?,
            region: get("AWS_REGION").map_or_else(|| need("AWS_DEFAULT_REGION"), Ok)?,
            credentials: Credentials::new(
                need("AWS_ACCESS_KEY_ID")?,
                need("AWS_SECRET_ACCESS_KEY")?,
                get("AWS_SESSION_TOKEN"),
                None,
                "environment",
            ),
        }))
    }

    fn config(&self, now: SystemTime) -> Result<Config, ActionError> {
        let endpoint = self.endpoint.parse();
        let mut config =
            Config::new(endpoint.map_err(|_| wrong("EKS_CLUSTER_ENDPOINT", "is not a URL"))?);
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.ca)
            .map(|certificate| certificate.map(|it| it.to_vec()))
            .collect();
        let certificates = certificates.ok().filter(|all| !all.is_empty());
        config.root_cert =
            Some(certificates.ok_or_else(|| {
                wrong("EKS_CLUSTER_CA", "has no certificate in PEM, base64-encoded")
            })?);
        config.auth_info = AuthInfo { token: Some(self.token(now)?.into()), ..AuthInfo::default() };
        Ok(config)
    }

    fn token(&self, now: SystemTime) -> Result<String, ActionError> {
        let url = self.presigned_url(now).map_err(|error| {
            ActionError::new(Code::Internal, format!("the token for EKS cannot be signed: {error}"))
        })?;
        Ok(format!("k8s-aws-v1.{}", BASE64_URL_SAFE_NO_PAD.encode(url)))
    }

    fn presigned_url(&self, now: SystemTime) -> Result<String, Box<dyn std::error::Error>> {
        let host = format!("sts.{}.amazonaws.com", self.region);
        let url = format!("https://{host}/?Action=GetCallerIdentity&Version=2011-06-15");
        let mut settings = SigningSettings::default();
        settings.signature_location = SignatureLocation::QueryParams;
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.expires_in = Some(TOKEN_TTL);
        let identity = self.credentials.clone().into();
        let params: SigningParams<'_> = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("sts")
            .time(now)
            .settings(settings)
            .build()?
            .into();
        let headers = [("host", host.as_str()), ("x-k8s-aws-id", self.name.as_str())];
        let body = SignableBody::Bytes(b"");
        let request = SignableRequest::new("GET", url.as_str(), headers.into_iter(), body)?;
        let (instructions, _) = sign(request, &params)?.into_parts();
        // In the order of AWS's own tools.
        let order = |name: &str| {
            let names = [
                "X-Amz-Algorithm",
                "X-Amz-Credential",
                "X-Amz-Date",
                "X-Amz-Expires",
                "X-Amz-SignedHeaders",
                "X-Amz-Security-Token",
                "X-Amz-Signature",
            ];
            names.iter().position(|it| *it == name)
        };
        let mut signed: Vec<_> = instructions
            .params()
            .iter()
            .map(|(name, value)| (*name, utf8_percent_encode(value, RESERVED).to_string()))
            .collect();
        signed.sort_by_key(|(name, _)| order(name));
        let query: String = signed.iter().map(|(name, value)| format!("&{name}={value}")).collect();
        Ok(url + &query)
    }
}

fn wrong(variable: &str, what: &str) -> ActionError {
    ActionError::new(Code::Configuration, format!("environment variable {variable} {what}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

    fn vars(session: Option<&str>) -> BTreeMap<&'static str, String> {
        let mut vars = BTreeMap::from([
            ("EKS_CLUSTER_NAME", "prod".to_owned()),
            ("EKS_CLUSTER_ENDPOINT", "https://ABC.gr7.eu-central-1.eks.amazonaws.com".to_owned()),
            ("EKS_CLUSTER_CA", BASE64_STANDARD.encode(PEM)),
            ("AWS_REGION", "eu-central-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
        ]);
        vars.extend(session.map(|token| ("AWS_SESSION_TOKEN", token.to_owned())));
        vars
    }

    const PEM: &str = "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n";

    fn read(vars: &BTreeMap<&'static str, String>) -> Result<Option<Eks>, ActionError> {
        Eks::from_vars(&|name| vars.get(name).cloned())
    }

    /// 2026-01-02T03:04:05Z.
    fn signing_time() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_323_045)
    }

    /// What `aws eks get-token --cluster-name prod --region eu-central-1` (awscli 1.46.3) printed for
    /// the same keys at the same time.
    #[test]
    fn the_token_equals_that_of_awscli() {
        let token = |session| {
            let eks = read(&vars(session)).expect("is read").expect("is there");
            eks.token(signing_time()).expect("is signed")
        };
        assert_eq!(token(None), include_str!("../../../tests/eks/token.txt").trim());
        assert_eq!(
            token(Some("FwoGZXIvYXdzE/+=session")),
            include_str!("../../../tests/eks/token_of_a_session.txt").trim()
        );
    }

    #[test]
    fn the_configuration_has_the_address_and_certificate_of_the_variables() {
        let eks = read(&vars(None)).expect("is read").expect("is there");
        let config = eks.config(signing_time()).expect("is whole");
        assert_eq!(config.cluster_url.host(), Some("ABC.gr7.eu-central-1.eks.amazonaws.com"));
        assert_eq!(config.root_cert, Some(vec![vec![1, 2, 3]]));
    }

    #[test]
    fn a_missing_name_means_no_cluster_and_another_missing_variable_is_an_error() {
        assert!(read(&BTreeMap::new()).expect("is read").is_none());
        for missing in ["EKS_CLUSTER_ENDPOINT", "EKS_CLUSTER_CA", "AWS_REGION", "AWS_ACCESS_KEY_ID"]
        {
            let mut vars = vars(None);
            vars.remove(missing);
            let error = read(&vars).map(|_| ()).expect_err(missing);
            assert_eq!(error.code, Code::Configuration);
            assert!(!error.detail.contains(SECRET), "{}", error.detail);
        }
        let mut wrong = vars(None);
        wrong.insert("EKS_CLUSTER_CA", "%%%".to_owned());
        assert!(read(&wrong).is_err());
    }
}
