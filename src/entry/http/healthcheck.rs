//! Asks a server whether it is well, as a container's health check does: an image without a shell has no
//! other program for it.

use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::{Request, StatusCode, Uri, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use crate::{
    cli::HealthcheckArgs,
    config::Settings,
    entry::once,
    error::{ActionError, Code},
};

/// The longest that the server may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Asks the server, by default the one that would serve in this environment. Returns what it said.
///
/// # Errors
/// [`Code::Usage`] for an address that is none, [`Code::ServerUnwell`] for any answer but 200 and for none.
pub fn check(args: &HealthcheckArgs, settings: &Settings) -> Result<String, ActionError> {
    let default = || format!("http://127.0.0.1:{}/api/v1/healthz", settings.port);
    let url = args.url.clone().unwrap_or_else(default);
    let uri: Uri = url.parse().map_err(|_| not_an_address(&url))?;
    let (Some("http"), Some(host)) = (uri.scheme_str(), uri.host()) else {
        return Err(not_an_address(&url));
    };
    let address = format!("{host}:{}", uri.port_u16().unwrap_or(80));
    once::runtime()?.block_on(async {
        let answer = timeout(TIMEOUT, ask(&address, &uri)).await;
        let late = || unwell(&url, format!("no answer within {} s", TIMEOUT.as_secs()));
        match answer.unwrap_or_else(|_| Err(late()))? {
            (StatusCode::OK, body) => Ok(body),
            (status, body) => Err(unwell(&url, format!("{status}: {body}"))),
        }
    })
}

async fn ask(address: &str, uri: &Uri) -> Result<(StatusCode, String), ActionError> {
    let fault = |error: &dyn std::fmt::Display| unwell(&uri.to_string(), error.to_string());
    let stream = TcpStream::connect(address).await.map_err(|error| fault(&error))?;
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

fn not_an_address(url: &str) -> ActionError {
    ActionError::new(Code::Usage, format!("{url} is no address as http://HOST:PORT/PATH"))
}

fn unwell(url: &str, what: String) -> ActionError {
    ActionError::new(Code::ServerUnwell, format!("{url}: {what}"))
        .with_hint("look at the server's log")
}
