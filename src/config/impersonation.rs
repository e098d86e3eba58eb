//! Whom a server may impersonate: the settings, checked. Must not know a caller.

use crate::{
    config::variables::{
        IMPERSONATE, IMPERSONATE_ACCOUNTS, IMPERSONATE_EXTRA, IMPERSONATE_GROUPS, Setting,
        Variables,
    },
    contract::{error::ActionError, names::ServiceAccount},
};

/// The prefix of the users and groups of Kubernetes itself
/// (<https://kubernetes.io/docs/reference/access-authn-authz/rbac/#referring-to-subjects>).
pub(crate) const SYSTEM: &str = "system:";

/// What of a caller is passed on to the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImpersonationRules {
    /// The groups; others are left out.
    pub groups: Vec<String>,
    /// The service accounts that may be impersonated.
    pub accounts: Vec<ServiceAccount>,
    /// The keys of extra fields; others are left out.
    pub extra: Vec<String>,
}

/// The rules, if the calls about targets are made as the caller.
///
/// # Errors
/// The variable that is wrong.
pub(super) fn rules(vars: &Variables) -> Result<Option<ImpersonationRules>, ActionError> {
    let details = [&IMPERSONATE_GROUPS, &IMPERSONATE_ACCOUNTS, &IMPERSONATE_EXTRA];
    match IMPERSONATE.get(vars) {
        None | Some("none") => match details.iter().find(|it| it.get(vars).is_some()) {
            Some(alone) => Err(alone.invalid(&format!("needs {}=callers", IMPERSONATE.name))),
            None => Ok(None),
        },
        Some("callers") => Ok(Some(ImpersonationRules {
            groups: each(&IMPERSONATE_GROUPS, vars, group)?,
            accounts: each(&IMPERSONATE_ACCOUNTS, vars, str::parse)?,
            extra: each(&IMPERSONATE_EXTRA, vars, extra_key)?,
        })),
        Some(_) => Err(IMPERSONATE.invalid("must be none or callers")),
    }
}

fn each<T>(
    setting: &Setting,
    vars: &Variables,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, ActionError> {
    let texts = setting.get(vars).unwrap_or_default().split(',').map(str::trim);
    let read = texts.filter(|text| !text.is_empty()).map(read);
    read.collect::<Result<_, _>>().map_err(|what| setting.invalid(&what))
}

/// The API server adds `system:authenticated` itself, and the groups of a service account. `system:masters` may do
/// everything, whatever RBAC says.
fn group(text: &str) -> Result<String, String> {
    if text.starts_with(SYSTEM) {
        return Err(format!("must not have a group that begins with {SYSTEM}"));
    }
    match text.contains(char::is_control) {
        false => Ok(text.to_owned()),
        true => Err("must be names without control characters".to_owned()),
    }
}

/// The API server reads the key from the name of a header, which has no capital letters.
fn extra_key(text: &str) -> Result<String, String> {
    if text.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase()) {
        return Ok(text.to_owned());
    }
    Err("must be keys in lower case, for example example.com/team".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Option<ImpersonationRules>, String> {
        let vars = vars.iter().map(|(name, value)| {
            let name = format!("ACTION_EXECUTOR_IMPERSONATE{name}");
            (name, (*value).to_owned())
        });
        rules(&vars.collect()).map_err(|error| error.detail)
    }

    #[test]
    fn nobody_is_impersonated_unless_it_is_set() {
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[("", "none")]), Ok(None));
        assert_eq!(read(&[("", "callers")]), Ok(Some(ImpersonationRules::default())));
    }

    #[test]
    fn passed_on_fields_are_listed() {
        let rules = read(&[
            ("", "callers"),
            ("_GROUPS", "sre, oidc:on-call"),
            ("_ACCOUNTS", "agents:agent"),
            ("_EXTRA", "authentication.kubernetes.io/credential-id"),
        ]);
        let rules = rules.expect("is read").expect("is on");
        assert_eq!(rules.groups, ["sre", "oidc:on-call"]);
        assert_eq!(rules.accounts[0].user(), "system:serviceaccount:agents:agent");
        assert_eq!(rules.extra, ["authentication.kubernetes.io/credential-id"]);
    }

    #[test]
    fn a_wrong_setting_is_named() {
        for (vars, named) in [
            (&[("", "caller")][..], "ACTION_EXECUTOR_IMPERSONATE must be none or callers"),
            (&[("_GROUPS", "sre")], "ACTION_EXECUTOR_IMPERSONATE_GROUPS needs"),
            (&[("", "none"), ("_EXTRA", "a")], "ACTION_EXECUTOR_IMPERSONATE_EXTRA needs"),
            (&[("", "callers"), ("_GROUPS", "sre,system:masters")], "IMPERSONATE_GROUPS must not"),
            (&[("", "callers"), ("_GROUPS", "sy\u{7}")], "IMPERSONATE_GROUPS must be"),
            (&[("", "callers"), ("_ACCOUNTS", "agent")], "IMPERSONATE_ACCOUNTS must be"),
            (&[("", "callers"), ("_EXTRA", "Team")], "IMPERSONATE_EXTRA must be keys in lower"),
            (&[("", "callers"), ("_EXTRA", "a b")], "IMPERSONATE_EXTRA must be keys in lower"),
        ] {
            let error = read(vars).expect_err(named);
            assert!(error.contains(named), "{error}");
        }
    }
}
