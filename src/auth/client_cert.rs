//! The user and groups of a client certificate, as kube-apiserver's x509 authenticator reads them: the common
//! name is the user, the organizations are the groups. Does not verify certificates: the TLS handshake does.

use x509_parser::{parse_x509_certificate, x509::AttributeTypeAndValue};

use crate::auth::token_review::Identity;

/// The group of authenticated users. The API server adds it only to users that it authenticates itself.
const AUTHENTICATED: &str = "system:authenticated";

/// The subject of a client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CertificateSubject {
    /// The common name.
    pub name: String,
    /// The organizations.
    pub groups: Vec<String>,
}

impl CertificateSubject {
    /// The subject of a certificate in DER; none if it does not have one common name as text.
    pub(crate) fn of(certificate: &[u8]) -> Option<Self> {
        let (_, certificate) = parse_x509_certificate(certificate).ok()?;
        let text = |it: &AttributeTypeAndValue<'_>| it.as_str().ok().map(str::to_owned);
        let mut names = certificate.subject().iter_common_name();
        // With two names it is unclear which one is meant.
        let (name, None) = (text(names.next()?)?, names.next()) else { return None };
        let groups = certificate.subject().iter_organization().map(text).collect::<Option<_>>()?;
        (!name.is_empty()).then_some(CertificateSubject { name, groups })
    }

    /// The user for the cluster's RBAC.
    pub(crate) fn identity(&self) -> Identity {
        let mut groups = self.groups.clone();
        groups.push(AUTHENTICATED.to_owned());
        Identity::new(self.name.clone(), groups)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair};

    use super::*;

    fn subject(of: &[(DnType, impl Into<DnValue> + Clone)]) -> Option<CertificateSubject> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in of {
            params.distinguished_name.push(kind.clone(), value.clone());
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
    fn a_subject_with_two_common_names_has_no_user() {
        let (first, second) = (DnType::CommonName, DnType::CustomDnType(vec![2, 5, 4, 3]));
        assert_eq!(subject(&[(first, "anna"), (second, "berta")]), None);
    }

    #[test]
    fn a_common_name_of_another_text_type_has_no_user() {
        for value in [
            DnValue::BmpString("anna".try_into().expect("is BMP")),
            DnValue::TeletexString("anna".try_into().expect("is Teletex")),
        ] {
            assert_eq!(subject(&[(DnType::CommonName, value)]), None);
        }
        let ascii = DnValue::Ia5String("anna".try_into().expect("is IA5"));
        assert_eq!(subject(&[(DnType::CommonName, ascii)]).expect("is anna").name, "anna");
    }

    #[test]
    fn invalid_bytes_have_no_subject() {
        assert_eq!(CertificateSubject::of(b""), None);
        assert_eq!(CertificateSubject::of(b"0\x82\xff\xff"), None);
    }
}
