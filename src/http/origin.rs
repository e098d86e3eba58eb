//! Whose requests are meant for this server: decisions on a request's header alone.
//!
//! A browser sends requests for any page that it shows. By DNS rebinding a page's own host name comes to
//! mean this server's address, and then the page may read what is answered; so where only this machine can
//! reach the server, only names of this machine are taken for its `Host`. And a page of another site is told
//! by its `Origin` and by `Sec-Fetch-Site`, which no page can set (Fetch Metadata Request Headers, section
//! 2; Fetch, "Origin header").

use std::net::IpAddr;

use http::{HeaderMap, Method, Request, Uri, Version, header, uri::Authority};

use crate::{
    contract::error::{ActionError, Code},
    http::routes::Route,
};

/// The names that the server goes by.
#[derive(Clone, Debug)]
pub struct Site {
    /// Host names and addresses that a person listed, in lower case.
    hosts: Vec<String>,
    /// Whether there are no others, those of the connection itself aside.
    closed: bool,
}

/// How a request came in.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// The server's own address on the connection.
    pub local: IpAddr,
    /// Whether it came over TLS.
    pub secure: bool,
}

/// A host and a port, by which two are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    host: String,
    port: u16,
}

impl Site {
    /// A server that listens on `address` and that a person calls by `hosts`.
    #[must_use]
    pub fn new(address: IpAddr, hosts: Vec<String>) -> Self {
        Site { closed: address.is_loopback() || !hosts.is_empty(), hosts }
    }

    /// Whether this request may be meant for us.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] for a `Host` that is none, [`Code::MisdirectedRequest`] for another's, and
    /// [`Code::CrossSite`] for a request that a page of another site makes.
    pub fn check<B>(&self, request: &Request<B>, arrival: Arrival) -> Result<(), ActionError> {
        let host = host(request.headers(), request.version())?;
        let target = request.uri().authority().cloned();
        for authority in [&host, &target].into_iter().flatten() {
            self.check_host(authority, arrival)?;
        }
        match Route::of(request.method().as_str(), request.uri().path()) {
            // Nothing is told there that is worth hiding, and monitoring pages may ask.
            Ok(Route::Health | Route::Ready) => Ok(()),
            _ => {
                let own = target.or(host).map(|it| place(&it, arrival.secure));
                self.check_sender(request, own.as_ref(), arrival.secure)
            }
        }
    }

    fn check_host(&self, authority: &Authority, arrival: Arrival) -> Result<(), ActionError> {
        let name = plain(authority.host());
        if !self.closed || self.hosts.contains(&name) || is_connections_own(&name, arrival.local) {
            return Ok(());
        }
        let detail = "the request is for a host that this server does not go by";
        Err(ActionError::new(Code::MisdirectedRequest, detail)
            .with_hint("ACTION_EXECUTOR_HOSTS lists the names by which it may be called"))
    }

    /// Whether a page that makes this request is one of our own, or of a host that a person listed.
    fn check_sender<B>(
        &self,
        request: &Request<B>,
        own: Option<&Place>,
        secure: bool,
    ) -> Result<(), ActionError> {
        let site = value(request.headers(), "sec-fetch-site");
        let mut origins = request.headers().get_all(header::ORIGIN).iter();
        let allowed = match (origins.next(), origins.next()) {
            // The browser itself has compared them, and it knows the scheme on the other side of a proxy.
            _ if site == Some("same-origin") => true,
            (Some(origin), None) => {
                let origin = origin.to_str().ok().and_then(origin_of);
                origin.is_some_and(|(scheme, place)| {
                    self.hosts.contains(&place.host)
                        || (own == Some(&place) && (scheme == "https") == secure)
                })
            }
            (Some(_), Some(_)) => false,
            (None, _) => site != Some("cross-site") || is_followed_link(request),
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
    let mut all = headers.get_all(header::HOST).iter();
    let host = match (all.next(), all.next()) {
        (None, _) if version < Version::HTTP_11 => return Ok(None),
        (None, _) => return wrong("the request has no Host"),
        (Some(host), None) => Authority::try_from(host.as_bytes()).ok(),
        (Some(_), Some(_)) => return wrong("the request has more than one Host"),
    };
    match host.filter(|host| !host.host().is_empty() && !host.as_str().contains('@')) {
        Some(host) => Ok(Some(host)),
        None => wrong("the request's Host is no host"),
    }
}

/// Whether a name means the very machine that the connection is within, or is the address that the client
/// connected to, as a kubelet's probes say it. A page cannot be loaded from either by another's name.
fn is_connections_own(name: &str, local: IpAddr) -> bool {
    let local = local.to_canonical();
    let address = name.parse::<IpAddr>().ok().map(|it| it.to_canonical());
    address == Some(local)
        || (local.is_loopback()
            && (name == "localhost" || address.is_some_and(|it| it.is_loopback())))
}

/// A link that somebody followed here, to be shown by itself and not in another's frame. What is answered
/// cannot be read by the page that the link is on.
fn is_followed_link<B>(request: &Request<B>) -> bool {
    let says = |name, expected| value(request.headers(), name) == Some(expected);
    request.method() == Method::GET
        && says("sec-fetch-mode", "navigate")
        && says("sec-fetch-dest", "document")
}

fn value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The scheme and the place of an `Origin`; none for `null`.
fn origin_of(text: &str) -> Option<(String, Place)> {
    let uri: Uri = text.parse().ok()?;
    let scheme = uri.scheme_str()?.to_owned();
    let place = place(uri.authority()?, scheme == "https");
    Some((scheme, place))
}

fn place(authority: &Authority, secure: bool) -> Place {
    let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
    Place { host: plain(authority.host()), port }
}

/// A host name in lower case without a dot at its end, or an address without brackets.
fn plain(host: &str) -> String {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.strip_suffix('.').unwrap_or(bare).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXECUTE: &str = "/api/v1/action/execute";

    fn site(address: &str, hosts: &[&str]) -> Site {
        let hosts = hosts.iter().map(|it| (*it).to_owned()).collect();
        Site::new(address.parse().expect("is an address"), hosts)
    }

    /// What is said to a request in this header, on a connection to `local`.
    fn said(site: &Site, local: &str, target: &str, headers: &[(&str, &str)]) -> Result<(), Code> {
        let mut request = Request::post(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("is a request");
        let arrival = Arrival { local: local.parse().expect("is an address"), secure: false };
        site.check(&request, arrival).map_err(|error| error.code)
    }

    #[test]
    fn on_this_machine_only_its_own_names_are_taken() {
        let site = site("127.0.0.1", &["hand.test"]);
        let host = |host| said(&site, "127.0.0.1", EXECUTE, &[("host", host)]);
        for own in
            ["localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1", "127.9.9.9:1", "[::1]:8000"]
        {
            assert_eq!(host(own), Ok(()), "{own}");
        }
        assert_eq!(host("Hand.test:8000"), Ok(()));
        for other in ["rebound.example:8000", "10.0.0.1", "localhost.evil.example", "a.hand.test"] {
            assert_eq!(host(other), Err(Code::MisdirectedRequest), "{other}");
        }
        let absolute = "http://rebound.example/api/v1/action/execute";
        let refused = said(&site, "127.0.0.1", absolute, &[("host", "localhost")]);
        assert_eq!(refused, Err(Code::MisdirectedRequest));
    }

    #[test]
    fn for_others_any_name_is_taken_unless_they_are_listed() {
        let host = |site: &Site, host| said(site, "10.0.0.7", EXECUTE, &[("host", host)]);
        assert_eq!(host(&site("0.0.0.0", &[]), "whatever.example"), Ok(()));
        let listed = site("::", &["hand.test"]);
        assert_eq!(host(&listed, "hand.test"), Ok(()));
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
        let site = site("0.0.0.0", &[]);
        let said = |headers: &[(&str, &str)]| said(&site, "10.0.0.7", EXECUTE, headers);
        let refused = Err(Code::InvalidRequest);
        assert_eq!(said(&[]), refused);
        assert_eq!(said(&[("host", "a"), ("host", "a")]), refused);
        for wrong in ["", "a b", "jo@a", "a/b", ":80"] {
            assert_eq!(said(&[("host", wrong)]), refused, "{wrong:?}");
        }
        let old = Request::get(EXECUTE).version(Version::HTTP_10).body(()).expect("is a request");
        let arrival = Arrival { local: IpAddr::from([10, 0, 0, 7]), secure: false };
        assert!(site.check(&old, arrival).is_ok());
    }

    #[test]
    fn pages_of_other_sites_make_no_requests() {
        let site = site("127.0.0.1", &["pages.test"]);
        let from = |origin| {
            let headers = [("host", "localhost:8000"), ("origin", origin)];
            said(&site, "127.0.0.1", EXECUTE, &headers)
        };
        assert_eq!(from("http://localhost:8000"), Ok(()));
        assert_eq!(from("https://pages.test"), Ok(()));
        for other in [
            "http://localhost:3000",
            "https://localhost:8000",
            "http://localhost",
            "http://evil.example",
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
        assert_eq!(said(&site, "127.0.0.1", EXECUTE, &behind_a_proxy), Ok(()));
        let probe = [("host", "localhost"), ("origin", "http://evil.example")];
        let get = Request::get("/readyz").header("host", probe[0].1).header("origin", probe[1].1);
        let arrival = Arrival { local: IpAddr::from([127, 0, 0, 1]), secure: false };
        assert!(site.check(&get.body(()).expect("is a request"), arrival).is_ok());
    }

    #[test]
    fn what_a_browser_says_of_the_sender_counts_too() {
        let site = site("127.0.0.1", &[]);
        let fetched = |method: Method, headers: &[(&str, &str)]| {
            let mut request =
                Request::builder().method(method).uri("/metrics").header("host", "localhost");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let arrival = Arrival { local: IpAddr::from([127, 0, 0, 1]), secure: false };
            site.check(&request.body(()).expect("is a request"), arrival).is_ok()
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
