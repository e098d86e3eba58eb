//! `healthcheck`: checks a server, for a container's health check: an image without a shell has no other program
//! for it.

use std::{io, net::IpAddr, path::Path, sync::Arc, time::Duration};

use http_body_util::{BodyExt, Empty};
use hyper::{Request, StatusCode, Uri, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

use crate::{
    cli::HealthcheckArgs,
    commands::{healthcheck_tls, run},
    config::Settings,
    contract::error::{ActionError, Code},
};

/// Maximum time of the check.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Checks the server, by default the one that would serve in this environment. Returns its response.
///
/// # Errors
/// [`Code::Usage`] for a URL that is not valid, [`Code::Configuration`] if the authorities cannot be read,
/// [`Code::ServerUnhealthy`] for any answer but 200 and for none.
pub fn check(args: &HealthcheckArgs, settings: &Settings) -> Result<String, ActionError> {
    let scheme = if settings.tls.is_some() { "https" } else { "http" };
    let default = || format!("{scheme}://127.0.0.1:{}/api/v1/healthz", settings.port);
    let url = args.url.clone().unwrap_or_else(default);
    let uri: Uri = url.parse().map_err(|_| not_a_url(&url))?;
    let Some(host) = uri.host() else { return Err(not_a_url(&url)) };
    let (tls, port) = match uri.scheme_str() {
        Some("http") => (None, 80),
        Some("https") => (Some(tls(host, args.ca.as_deref())?), 443),
        _ => return Err(not_a_url(&url)),
    };
    let address = format!("{host}:{}", uri.port_u16().unwrap_or(port));
    run::runtime()?.block_on(async {
        let answer = timeout(TIMEOUT, check_url(&address, &uri, tls)).await;
        let late = || unhealthy(&url, format!("no answer within {} s", TIMEOUT.as_secs()));
        match answer.unwrap_or_else(|_| Err(late()))? {
            (StatusCode::OK, body) => Ok(body),
            (status, body) => Err(unhealthy(&url, format!("{status}: {body}"))),
        }
    })
}

/// The TLS client for this host, and the name that it expects.
fn tls(
    host: &str,
    authorities: Option<&Path>,
) -> Result<(TlsConnector, ServerName<'static>), ActionError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let here = bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|it| it.is_loopback());
    if authorities.is_none() && !here {
        let detail = format!("no CA given for {host}");
        return Err(ActionError::new(Code::Usage, detail)
            .with_hint("--ca FILE names the file of its authority, or of the certificate itself"));
    }
    let name = ServerName::try_from(bare.to_owned()).map_err(|_| not_a_url(host))?;
    Ok((TlsConnector::from(Arc::new(healthcheck_tls::client(authorities)?)), name))
}

async fn check_url(
    address: &str,
    uri: &Uri,
    tls: Option<(TlsConnector, ServerName<'static>)>,
) -> Result<(StatusCode, String), ActionError> {
    let fault = |error: io::Error| unhealthy(&uri.to_string(), error.to_string());
    let stream = TcpStream::connect(address).await.map_err(fault)?;
    match tls {
        None => exchange(stream, address, uri).await,
        Some((connector, name)) => {
            let stream = connector.connect(name, stream).await.map_err(fault)?;
            exchange(stream, address, uri).await
        }
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    address: &str,
    uri: &Uri,
) -> Result<(StatusCode, String), ActionError> {
    let fault = |error: &dyn std::fmt::Display| unhealthy(&uri.to_string(), error.to_string());
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| fault(&error))?;
    tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path)
        .header(header::HOST, address)
        .body(Empty::<Bytes>::new())
        .map_err(|error| fault(&error))?;
    let response = sender.send_request(request).await.map_err(|error| fault(&error))?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| fault(&error))?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

fn not_a_url(url: &str) -> ActionError {
    ActionError::new(
        Code::Usage,
        format!("'{url}' is not a URL like http://HOST:PORT/PATH or https://HOST:PORT/PATH"),
    )
}

fn unhealthy(url: &str, what: String) -> ActionError {
    ActionError::new(Code::ServerUnhealthy, format!("{url}: {what}"))
        .with_hint("check the server's log")
}
