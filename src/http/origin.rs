//! Which requests are meant for this server, by their `Host` and `Origin`: decisions on a header alone.
//!
//! A browser sends requests for any page that it shows. By DNS rebinding a page's own host name comes to
//! mean this server's address, and then the page may read the response; so where only this machine can
//! reach the server, only names of this machine are accepted as `Host`. A page of another site is recognised
//! by its `Origin` and by `Sec-Fetch-Site`, which no page can set (Fetch Metadata Request Headers, section
//! 2; Fetch, "Origin header").

use std::net::{IpAddr, Ipv6Addr};

use http::{HeaderMap, Method, Request, Uri, Version, uri::Authority};

use crate::{
    contract::error::{ActionError, Code},
    http::{
        headers::{HOST, ORIGIN, SEC_FETCH_DEST, SEC_FETCH_MODE, SEC_FETCH_SITE},
        routes::MatchedPath,
    },
};

/// The host names that the server serves.
#[derive(Clone, Debug)]
pub(crate) struct HostPolicy {
    /// Host names and addresses that a person listed, in lower case.
    hosts: Vec<String>,
    /// Whether no other names are served, but for those of the connection itself.
    strict: bool,
}

/// What is known of the connection of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionInfo {
    /// The server's own address on the connection.
    pub local: IpAddr,
    /// Whether it came over TLS.
    pub secure: bool,
}

/// A host and a port, by which two are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HostPort {
    host: String,
    port: u16,
}

impl HostPolicy {
    /// The policy of a server that listens on `address`, and of which `hosts` are the names.
    pub(crate) fn new(address: IpAddr, hosts: Vec<String>) -> Self {
        HostPolicy { strict: address.is_loopback() || !hosts.is_empty(), hosts }
    }

    /// Checks that this request is meant for this server.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] for a `Host` that is not valid, [`Code::MisdirectedRequest`] for another one, and
    /// [`Code::CrossSite`] for a request that a page of another site makes.
    pub(crate) fn check<B>(
        &self,
        request: &Request<B>,
        path: MatchedPath,
        connection: ConnectionInfo,
    ) -> Result<(), ActionError> {
        let host = host(request.headers(), request.version())?;
        let target = target(request.uri())?;
        for authority in [&host, &target].into_iter().flatten() {
            self.check_host(authority, connection)?;
        }
        // The health is no secret, and monitoring pages may read it.
        if path.is_health_check(request.method().as_str()) {
            return Ok(());
        }
        let own = target.or(host).map(|it| host_port(&it, connection.secure));
        self.check_origin(request, own.as_ref(), connection.secure)
    }

    fn check_host(
        &self,
        authority: &Authority,
        connection: ConnectionInfo,
    ) -> Result<(), ActionError> {
        let name = normalize_host(authority.host());
        if !self.strict || self.hosts.contains(&name) || is_local_name(&name, connection.local) {
            return Ok(());
        }
        let detail = "this server does not serve the host in the `Host` header";
        Err(ActionError::new(Code::MisdirectedRequest, detail)
            .with_hint("ACTION_EXECUTOR_HOSTS lists the names that it serves"))
    }

    /// Checks that a page that makes this request is one of this server, or of a listed host.
    fn check_origin<B>(
        &self,
        request: &Request<B>,
        own: Option<&HostPort>,
        secure: bool,
    ) -> Result<(), ActionError> {
        let site = SEC_FETCH_SITE.read(request.headers())?;
        let origin = ORIGIN.read(request.headers())?;
        let allowed = match origin {
            // The browser has compared them, and it knows the scheme in front of a proxy.
            _ if site.as_deref() == Some("same-origin") => true,
            Some(origin) => origin_of(&origin).is_some_and(|(scheme, place)| {
                self.hosts.contains(&place.host)
                    || (own == Some(&place) && (scheme == "https") == secure)
            }),
            None => site.as_deref() != Some("cross-site") || is_top_level_navigation(request)?,
        };
        if allowed {
            return Ok(());
        }
        Err(ActionError::new(Code::CrossSite, "the request was made by a page of another site")
            .with_hint("ACTION_EXECUTOR_HOSTS lists the hosts whose pages may make requests"))
    }
}

/// The one `Host` (RFC 9112, section 3.2); before HTTP/1.1 there may be none.
fn host(headers: &HeaderMap, version: Version) -> Result<Option<Authority>, ActionError> {
    let wrong = |what| Err(ActionError::new(Code::InvalidRequest, what));
    let host = match HOST.read(headers)? {
        Some(host) => Authority::try_from(&*host).ok(),
        None if version < Version::HTTP_11 => return Ok(None),
        None => return wrong("the request has no Host"),
    };
    match host.filter(is_host_and_port) {
        Some(host) => Ok(Some(host)),
        None => wrong("the header Host is not a host name or address"),
    }
}

/// The host in the target itself, as a client sends it to a proxy (RFC 9112, section 3.2.2).
fn target(uri: &Uri) -> Result<Option<Authority>, ActionError> {
    let Some(authority) = uri.authority() else { return Ok(None) };
    if matches!(uri.scheme_str(), None | Some("http" | "https")) && is_host_and_port(authority) {
        return Ok(Some(authority.clone()));
    }
    let detail = "the request's target is not that of an HTTP server";
    Err(ActionError::new(Code::InvalidRequest, detail))
}

/// Whether a name means this machine on a connection within it, or is the address that the client
/// connected to, which a kubelet's probes send. No page of another site is loaded from such a name.
fn is_local_name(name: &str, local: IpAddr) -> bool {
    let local = local.to_canonical();
    let address = name.parse::<IpAddr>().ok().map(|it| it.to_canonical());
    address == Some(local)
        || (local.is_loopback()
            && (name == "localhost" || address.is_some_and(|it| it.is_loopback())))
}

/// Whether a person followed a link, and not a frame, to here. The page with the link cannot read the
/// response.
fn is_top_level_navigation<B>(request: &Request<B>) -> Result<bool, ActionError> {
    let mode = SEC_FETCH_MODE.read(request.headers())?;
    let destination = SEC_FETCH_DEST.read(request.headers())?;
    Ok(request.method() == Method::GET
        && mode.as_deref() == Some("navigate")
        && destination.as_deref() == Some("document"))
}

/// Whether it is what RFC 9112 (section 3.2) lets a `Host` be: a name or an address, and a port or none.
fn is_host_and_port(authority: &Authority) -> bool {
    let host = authority.host();
    let Some(rest) = authority.as_str().strip_prefix(host) else { return false };
    let is_port = |port: &str| {
        let is_number = port.bytes().all(|it| it.is_ascii_digit());
        is_number && (port.is_empty() || port.parse::<u16>().is_ok())
    };
    let is_address = |text: &str| text.parse::<Ipv6Addr>().is_ok();
    let bracketed = host.strip_prefix('[').map(|host| host.strip_suffix(']'));
    let is_name = bracketed.map_or(!host.is_empty(), |inner| inner.is_some_and(is_address));
    is_name && (rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port))
}

/// The scheme and the place of an `Origin`; none for `null`.
fn origin_of(text: &str) -> Option<(String, HostPort)> {
    let uri: Uri = text.parse().ok()?;
    let scheme = uri.scheme_str()?.to_owned();
    let authority = uri.authority().filter(|it| is_host_and_port(it))?;
    let place = host_port(authority, scheme == "https");
    Some((scheme, place))
}

fn host_port(authority: &Authority, secure: bool) -> HostPort {
    let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
    HostPort { host: normalize_host(authority.host()), port }
}

/// A host name in lower case without a dot at its end, or an address without brackets.
fn normalize_host(host: &str) -> String {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.strip_suffix('.').unwrap_or(bare).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXECUTE: &str = "/api/v1/action/execute";

    fn host_policy(address: &str, hosts: &[&str]) -> HostPolicy {
        let hosts = hosts.iter().map(|it| (*it).to_owned()).collect();
        HostPolicy::new(address.parse().expect("is an address"), hosts)
    }

    /// Checks a request with these headers, on a connection to `local`.
    fn said(
        host_policy: &HostPolicy,
        local: &str,
        target: &str,
        headers: &[(&str, &str)],
    ) -> Result<(), Code> {
        let mut request = Request::post(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("is a request");
        let connection =
            ConnectionInfo { local: local.parse().expect("is an address"), secure: false };
        check(host_policy, &request, connection).map_err(|error| error.code)
    }

    fn check(
        host_policy: &HostPolicy,
        request: &Request<()>,
        connection: ConnectionInfo,
    ) -> Result<(), ActionError> {
        host_policy.check(request, MatchedPath::of(request.uri().path()), connection)
    }

    #[test]
    fn on_this_machine_only_its_own_names_are_taken() {
        let host_policy = host_policy("127.0.0.1", &["listed.test"]);
        let host = |host| said(&host_policy, "127.0.0.1", EXECUTE, &[("host", host)]);
        for own in
            ["localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1", "127.9.9.9:1", "[::1]:8000"]
        {
            assert_eq!(host(own), Ok(()), "{own}");
        }
        assert_eq!(host("Listed.test:8000"), Ok(()));
        for other in ["rebound.example:8000", "10.0.0.1", "localhost.evil.example", "a.listed.test"]
        {
            assert_eq!(host(other), Err(Code::MisdirectedRequest), "{other}");
        }
        let absolute = "http://rebound.example/api/v1/action/execute";
        let refused = said(&host_policy, "127.0.0.1", absolute, &[("host", "localhost")]);
        for wrong in ["http://jo@localhost/", "ftp://localhost/", "http://localhost:abc/"] {
            let said = said(&host_policy, "127.0.0.1", wrong, &[("host", "localhost")]);
            assert_eq!(said, Err(Code::InvalidRequest), "{wrong}");
        }
        assert_eq!(refused, Err(Code::MisdirectedRequest));
    }

    #[test]
    fn for_others_any_name_is_taken_unless_they_are_listed() {
        let host = |host_policy: &HostPolicy, host| {
            said(host_policy, "10.0.0.7", EXECUTE, &[("host", host)])
        };
        assert_eq!(host(&host_policy("0.0.0.0", &[]), "whatever.example"), Ok(()));
        let listed = host_policy("::", &["listed.test"]);
        assert_eq!(host(&listed, "listed.test"), Ok(()));
        // A kubelet's probe names the pod's address; a forwarded port ends in the pod itself.
        assert_eq!(host(&listed, "10.0.0.7:8000"), Ok(()));
        assert_eq!(said(&listed, "::ffff:10.0.0.7", EXECUTE, &[("host", "10.0.0.7")]), Ok(()));
        assert_eq!(said(&listed, "127.0.0.1", EXECUTE, &[("host", "localhost:9000")]), Ok(()));
        for other in ["whatever.example", "localhost", "10.0.0.8"] {
            assert_eq!(host(&listed, other), Err(Code::MisdirectedRequest), "{other}");
        }
    }

    #[test]
    fn there_is_one_host_and_it_is_one() {
        let host_policy = host_policy("0.0.0.0", &[]);
        let said = |headers: &[(&str, &str)]| said(&host_policy, "10.0.0.7", EXECUTE, headers);
        let refused = Err(Code::InvalidRequest);
        assert_eq!(said(&[]), refused);
        assert_eq!(said(&[("host", "a"), ("host", "a")]), refused);
        for wrong in [
            "",
            "a b",
            "jo@a",
            "a/b",
            ":80",
            "a:b",
            "localhost:abc",
            "localhost:65536",
            "localhost:+1",
            "[localhost]",
            "[::1",
            "[::1]x",
        ] {
            assert_eq!(said(&[("host", wrong)]), refused, "{wrong:?}");
        }
        let old = Request::get(EXECUTE).version(Version::HTTP_10).body(()).expect("is a request");
        let connection = ConnectionInfo { local: IpAddr::from([10, 0, 0, 7]), secure: false };
        assert!(check(&host_policy, &old, connection).is_ok());
    }

    #[test]
    fn pages_of_other_sites_make_no_requests() {
        let host_policy = host_policy("127.0.0.1", &["pages.test"]);
        let from = |origin| {
            let headers = [("host", "localhost:8000"), ("origin", origin)];
            said(&host_policy, "127.0.0.1", EXECUTE, &headers)
        };
        assert_eq!(from("http://localhost:8000"), Ok(()));
        assert_eq!(from("https://pages.test"), Ok(()));
        for other in [
            "http://localhost:3000",
            "https://localhost:8000",
            "http://localhost",
            "http://evil.example",
            "http://jo@localhost:8000",
            "null",
            "",
            "file://",
        ] {
            assert_eq!(from(other), Err(Code::CrossSite), "{other:?}");
        }
        let behind_a_proxy = [
            ("host", "localhost"),
            ("origin", "https://localhost"),
            ("sec-fetch-site", "same-origin"),
        ];
        assert_eq!(said(&host_policy, "127.0.0.1", EXECUTE, &behind_a_proxy), Ok(()));
        let probe = [("host", "localhost"), ("origin", "http://evil.example")];
        let get = Request::get("/readyz").header("host", probe[0].1).header("origin", probe[1].1);
        let connection = ConnectionInfo { local: IpAddr::from([127, 0, 0, 1]), secure: false };
        assert!(check(&host_policy, &get.body(()).expect("is a request"), connection).is_ok());
    }

    #[test]
    fn fetch_metadata_is_checked_too() {
        let host_policy = host_policy("127.0.0.1", &[]);
        let fetched = |method: Method, headers: &[(&str, &str)]| {
            let mut request =
                Request::builder().method(method).uri("/metrics").header("host", "localhost");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let connection = ConnectionInfo { local: IpAddr::from([127, 0, 0, 1]), secure: false };
            check(&host_policy, &request.body(()).expect("is a request"), connection).is_ok()
        };
        let cross = ("sec-fetch-site", "cross-site");
        assert!(!fetched(Method::GET, &[cross]));
        assert!(fetched(Method::GET, &[("sec-fetch-site", "same-origin")]));
        let link = [cross, ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
        assert!(fetched(Method::GET, &link));
        assert!(!fetched(Method::POST, &link));
        let frame = [cross, ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")];
        assert!(!fetched(Method::GET, &frame));
    }
}
