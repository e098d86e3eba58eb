//! How a connection to the API server is opened: directly, or through a proxy, as kubectl does. Must not know what is
//! sent over it.

use std::{
    env,
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll},
};

use http::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::{
    client::{
        legacy::connect::{
            HttpConnector,
            proxy::{SocksV5, Tunnel},
        },
        proxy::matcher::{Intercept, Matcher},
    },
    rt::TokioIo,
};
use tokio::net::TcpStream;
use tokio_rustls::rustls::ClientConfig;
use tower::{BoxError, Service};

use crate::k8s::api::connection::CONNECT_TIMEOUT;

/// The port of a SOCKS proxy whose URL has none.
const SOCKS_PORT: u16 = 1080;

/// The proxy in front of the API server makes no connection to it.
#[derive(Debug, thiserror::Error)]
#[error("the proxy {proxy} makes no connection to the cluster")]
pub(crate) struct ProxyError {
    proxy: String,
    #[source]
    source: BoxError,
}

/// Opens connections. A proxy's user and password are in no message.
#[derive(Clone)]
pub(crate) struct Dialer {
    via: Via,
    /// The proxy's URL, without user and password.
    proxy: Option<String>,
}

#[derive(Clone)]
enum Via {
    Nothing(HttpConnector),
    Http(Tunnel<HttpsConnector<HttpConnector>>),
    Socks(SocksV5<HttpConnector>),
}

impl Dialer {
    /// The dialer for this server, through the kubeconfig's `proxy-url`, or else by HTTPS_PROXY, HTTP_PROXY and
    /// NO_PROXY. A proxy with TLS is trusted by the same configuration as the server.
    ///
    /// # Errors
    /// What is wrong with the proxy's URL.
    pub(crate) fn new(
        server: &Uri,
        proxy_url: Option<&str>,
        tls: &ClientConfig,
    ) -> Result<Self, String> {
        let intercept = match proxy_url.filter(|url| !url.is_empty()) {
            Some(url) => Some(of_kubeconfig(url, server)?),
            None => of_environment(server, &|name| env::var(name).ok()),
        };
        let Some(intercept) = intercept else {
            return Ok(Dialer { via: Via::Nothing(tcp()), proxy: None });
        };
        let uri = intercept.uri().clone();
        let name = uri.to_string().trim_end_matches('/').to_owned();
        let via = match uri.scheme_str() {
            Some("socks5" | "socks5h") => {
                let socks = SocksV5::new(with_port(uri, SOCKS_PORT), tcp());
                Via::Socks(match intercept.raw_auth() {
                    Some((user, password)) => socks.with_auth(user.to_owned(), password.to_owned()),
                    None => socks,
                })
            }
            Some("http" | "https") => {
                let connector = HttpsConnectorBuilder::new()
                    .with_tls_config(tls.clone())
                    .https_or_http()
                    .enable_http1()
                    .wrap_connector(tcp());
                let tunnel = Tunnel::new(uri, connector);
                Via::Http(match intercept.basic_auth() {
                    Some(header) => tunnel.with_auth(header.clone()),
                    None => tunnel,
                })
            }
            _ => return Err(unusable(&name)),
        };
        Ok(Dialer { via, proxy: Some(name) })
    }

    /// The error for a connection that was not made within the time limit.
    pub(crate) fn late(&self) -> BoxError {
        let why = format!("no connection within {} s", CONNECT_TIMEOUT.as_secs());
        self.explain(why.into())
    }

    fn explain(&self, source: BoxError) -> BoxError {
        match self.proxy.clone() {
            Some(proxy) => ProxyError { proxy, source }.into(),
            None => source,
        }
    }
}

fn unusable(url: &str) -> String {
    format!(
        "the proxy {url} cannot be used: its URL must begin with http://, https:// or socks5://"
    )
}

/// kubectl uses `proxy-url` whatever NO_PROXY says.
fn of_kubeconfig(url: &str, server: &Uri) -> Result<Intercept, String> {
    // The URL may have a password.
    Matcher::builder().all(url).build().intercept(server).ok_or_else(|| unusable("of `proxy-url`"))
}

/// As in Go (`http.ProxyFromEnvironment`): never for this very host.
fn of_environment(server: &Uri, get: &dyn Fn(&str) -> Option<String>) -> Option<Intercept> {
    let host = server.host()?.trim_matches(['[', ']']);
    if host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()) {
        return None;
    }
    let first = |names: [&str; 2]| names.iter().find_map(|name| get(name)).unwrap_or_default();
    Matcher::builder()
        .http(first(["HTTP_PROXY", "http_proxy"]))
        .https(first(["HTTPS_PROXY", "https_proxy"]))
        .no(first(["NO_PROXY", "no_proxy"]))
        .build()
        .intercept(server)
}

fn with_port(uri: Uri, port: u16) -> Uri {
    let (Some(host), None) = (uri.host(), uri.port()) else { return uri };
    let authority = format!("{host}:{port}");
    let mut parts = uri.clone().into_parts();
    parts.authority = authority.parse().ok();
    Uri::from_parts(parts).unwrap_or(uri)
}

fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp
}

impl Service<Uri> for Dialer {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match &mut self.via {
            Via::Nothing(tcp) => tcp.poll_ready(context).map_err(Into::into),
            Via::Http(tunnel) => tunnel.poll_ready(context).map_err(Into::into),
            Via::Socks(socks) => socks.poll_ready(context).map_err(Into::into),
        }
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let dialer = self.clone();
        let port = if server.scheme_str() == Some("http") { 80 } else { 443 };
        let opened: Self::Future = match &mut self.via {
            Via::Nothing(tcp) => {
                let stream = tcp.call(server);
                Box::pin(async { Ok(MaybeHttpsStream::Http(stream.await?)) })
            }
            Via::Http(tunnel) => {
                let stream = tunnel.call(with_port(server, port));
                Box::pin(async { Ok(stream.await?) })
            }
            Via::Socks(socks) => {
                let stream = socks.call(with_port(server, port));
                Box::pin(async { Ok(MaybeHttpsStream::Http(stream.await?)) })
            }
        };
        Box::pin(async move { opened.await.map_err(|error| dialer.explain(error)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(uri: &'static str) -> Uri {
        Uri::from_static(uri)
    }

    #[test]
    fn the_environments_proxy_is_for_other_hosts_than_this_one_and_those_of_no_proxy() {
        let proxy = |uri, vars: &[(&str, &str)]| {
            let get = |name: &str| {
                vars.iter().find(|(it, _)| *it == name).map(|(_, value)| (*value).to_owned())
            };
            of_environment(&server(uri), &get).map(|it| it.uri().to_string())
        };
        let vars = [("https_proxy", "proxy:3128"), ("NO_PROXY", "10.0.0.0/8,.example.com")];
        assert_eq!(proxy("https://api.shop:6443", &vars).as_deref(), Some("http://proxy:3128/"));
        for uri in [
            "https://10.1.2.3",
            "https://a.example.com",
            "https://127.0.0.1:6443",
            "https://localhost",
        ] {
            assert_eq!(proxy(uri, &vars), None, "{uri}");
        }
        assert_eq!(proxy("http://api.shop", &vars), None);
    }

    #[test]
    fn a_proxys_password_is_in_no_message() {
        let server = server("https://api.shop");
        let proxy = of_kubeconfig("socks5://jo:canary@proxy", &server).expect("is one");
        assert_eq!(proxy.uri().to_string(), "socks5://proxy/");
        assert_eq!(with_port(proxy.uri().clone(), SOCKS_PORT).to_string(), "socks5://proxy:1080/");
        for wrong in ["ftp://jo:canary@proxy", "canary canary"] {
            let error = of_kubeconfig(wrong, &server).map(|_| ()).expect_err(wrong);
            assert!(!error.contains("canary"), "{error}");
        }
    }
}
