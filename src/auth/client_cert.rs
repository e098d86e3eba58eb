//! Authenticator who prove who they are with a certificate: whom it names.
//!
//! It is read as kube-apiserver reads one (its x509 authenticator): the subject's common name is the user,
//! its organizations are the groups. The server has verified it against the clients' authorities.

use x509_parser::{parse_x509_certificate, x509::AttributeTypeAndValue};

use crate::auth::token_review::Identity;

/// The group of everybody who has proved who they are; the API server adds it by itself only to those
/// whom it recognised itself.
const AUTHENTICATED: &str = "system:authenticated";

/// Whom a certificate names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateSubject {
    /// The common name.
    pub name: String,
    /// The organizations.
    pub groups: Vec<String>,
}

impl CertificateSubject {
    /// The subject of a certificate in DER; none, if it does not name one user in text.
    #[must_use]
    pub fn of(certificate: &[u8]) -> Option<Self> {
        let (_, certificate) = parse_x509_certificate(certificate).ok()?;
        let text = |it: &AttributeTypeAndValue<'_>| it.as_str().ok().map(str::to_owned);
        let mut names = certificate.subject().iter_common_name();
        // Of two names nobody can say which one was meant.
        let (name, None) = (text(names.next()?)?, names.next()) else { return None };
        let groups = certificate.subject().iter_organization().map(text).collect::<Option<_>>()?;
        (!name.is_empty()).then_some(CertificateSubject { name, groups })
    }

    /// The user as the cluster's RBAC knows them.
    #[must_use]
    pub fn identity(&self) -> Identity {
        let mut groups = self.groups.clone();
        groups.push(AUTHENTICATED.to_owned());
        Identity::new(self.name.clone(), groups)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn subject(of: &[(DnType, &str)]) -> Option<CertificateSubject> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in of {
            params.distinguished_name.push(kind.clone(), *value);
        }
        let key = KeyPair::generate().expect("is made");
        CertificateSubject::of(params.self_signed(&key).expect("is signed").der())
    }

    #[test]
    fn the_common_name_is_the_user_and_the_organizations_are_groups() {
        let (name, group) = (DnType::CommonName, DnType::OrganizationName);
        let known = subject(&[(name.clone(), "jö"), (group.clone(), "sre")]).expect("names jö");
        assert_eq!((known.name.as_str(), known.groups.as_slice()), ("jö", &["sre".to_owned()][..]));
        assert_eq!(known.identity().user, "jö");
        for nobody in [&[][..], &[(group, "sre")], &[(name, "")]] {
            assert_eq!(subject(nobody), None);
        }
    }

    #[test]
    fn what_is_no_certificate_names_nobody() {
        assert_eq!(CertificateSubject::of(b""), None);
        assert_eq!(CertificateSubject::of(b"0\x82\xff\xff"), None);
    }
}
