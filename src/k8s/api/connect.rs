//! Finds the cluster and our credentials. Must not send a request.
//!
//! In order: a whole kubeconfig in `KUBECONFIG_BASE64`, the EKS cluster that `EKS_CLUSTER_NAME` names (in
//! the function runtime), the files of `KUBECONFIG`, `~/.kube/config`, the service account of the pod
//! that we run in. Without any of these there is no cluster, and simulation is offline. One that exists and
//! cannot be used is an error: a broken configuration must never mean "no cluster".

use std::{env, path::PathBuf, time::Duration};

use http::{Request, Response};
use hyper::body::{Body, Bytes};
use kube::{
    Client, Config,
    client::{ClientBuilder, ConfigExt},
    config::{KubeConfigOptions, Kubeconfig},
};
use tower::{
    BoxError, Service,
    util::{MapRequestLayer, MapResponseLayer, option_layer},
};
use tracing::Span;

use crate::{
    config::text_of_base64,
    contract::error::{ActionError, Code},
    k8s::api::{
        client::Cluster,
        connection::{ApiConnection, CONNECT_TIMEOUT},
        error::chain,
        server_time::ServerTime,
        warnings,
    },
    telemetry::traces,
};

/// The variable with a base64-encoded kubeconfig.
const KUBECONFIG_BASE64: &str = "KUBECONFIG_BASE64";

const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Finds the cluster, with this kubeconfig context if one is given. A server that does not answer is noticed
/// at the first call.
///
/// # Errors
/// [`Code::Configuration`] when the configuration cannot be read or used.
pub(crate) async fn connect(context: Option<&str>) -> Result<Option<Cluster>, ActionError> {
    let Some(mut config) = find_config(context).await? else { return Ok(None) };
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    let server = config.cluster_url.to_string();
    let time = ServerTime::default();
    let client = client(config, time.clone()).map_err(|error| misconfigured(chain(&*error)))?;
    Ok(Some(Cluster::new(client, server).with_time(time)))
}

/// The client for this configuration. Through a proxy it is kube's own, with HTTP/1.1.
fn client(config: Config, time: ServerTime) -> Result<Client, BoxError> {
    if config.proxy_url.is_some() {
        return Ok(with_layers(ClientBuilder::try_from(config)?, time));
    }
    let builder = ClientBuilder::new(ApiConnection::new(&config)?, &*config.default_namespace)
        .with_layer(&config.extra_headers_layer()?)
        .with_layer(&option_layer(config.auth_layer()?))
        .with_layer(&config.base_uri_layer());
    Ok(with_layers(builder, time))
}

fn with_layers<S, B>(builder: ClientBuilder<S>, time: ServerTime) -> Client
where
    S: Service<Request<kube::client::Body>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    builder
        .with_layer(&warnings::layer())
        .with_layer(&note_time(time))
        .with_layer(&MapRequestLayer::new(inject_trace_context))
        .build()
}

/// A layer that sets the clock by each response.
fn note_time<B>(time: ServerTime) -> MapResponseLayer<impl Fn(Response<B>) -> Response<B> + Clone> {
    MapResponseLayer::new(move |response: Response<B>| {
        time.note(response.headers());
        response
    })
}

/// Sends the trace context, so that the API server's spans (if its TracingConfiguration enables them) have
/// ours as parent.
fn inject_trace_context<B>(mut request: Request<B>) -> Request<B> {
    traces::inject(&Span::current(), request.headers_mut());
    request
}

async fn find_config(context: Option<&str>) -> Result<Option<Config>, ActionError> {
    #[cfg(feature = "lambda")]
    if let Some(config) = super::eks::config()? {
        return Ok(Some(config));
    }
    if let Some(kubeconfig) = in_variable()?.map_or_else(find_kubeconfig, |it| Ok(Some(it)))? {
        let options =
            KubeConfigOptions { context: context.map(str::to_owned), ..Default::default() };
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
        return config.map(Some).map_err(|error| misconfigured(chain(&error)));
    }
    if context.is_some() {
        return Err(misconfigured("a kubeconfig context is set, but there is no kubeconfig"));
    }
    if env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
        return Config::incluster().map(Some).map_err(|error| misconfigured(chain(&error)));
    }
    Ok(None)
}

/// The kubeconfig of the variable, for platforms without a file system.
fn in_variable() -> Result<Option<Kubeconfig>, ActionError> {
    let Some(text) = env::var_os(KUBECONFIG_BASE64).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    // The value may be secret, so no error repeats it.
    let invalid =
        || misconfigured(format!("{KUBECONFIG_BASE64} is not a base64-encoded kubeconfig"));
    let text = text.into_string().map_err(|_| invalid())?;
    let text = text_of_base64(&text).ok_or_else(invalid)?;
    Kubeconfig::from_yaml(&text).map(Some).map_err(|_| invalid())
}

/// The merged kubeconfig. Like kubectl, it skips files of `KUBECONFIG` that do not exist; unlike kubectl, it
/// is an error if none of them exists.
fn find_kubeconfig() -> Result<Option<Kubeconfig>, ActionError> {
    let paths = env::var_os("KUBECONFIG").unwrap_or_default();
    let paths: Vec<PathBuf> =
        env::split_paths(&paths).filter(|path| !path.as_os_str().is_empty()).collect();
    let candidates =
        if paths.is_empty() { default_path().into_iter().collect() } else { paths.clone() };
    let present: Vec<_> = candidates.into_iter().filter(|path| path.exists()).collect();
    if present.is_empty() {
        return match paths.first() {
            None => Ok(None),
            Some(first) => Err(misconfigured(format!(
                "KUBECONFIG names {}, which does not exist",
                first.display()
            ))),
        };
    }
    present
        .iter()
        .try_fold(Kubeconfig::default(), |merged, path| {
            Kubeconfig::read_from(path).and_then(|next| merged.merge(next))
        })
        .map(Some)
        .map_err(|error| misconfigured(chain(&error)))
}

fn default_path() -> Option<PathBuf> {
    let home = env::var_os("HOME").filter(|home| !home.is_empty())?;
    Some(PathBuf::from(home).join(".kube").join("config"))
}

fn misconfigured(detail: impl Into<String>) -> ActionError {
    ActionError::new(Code::Configuration, detail.into()).with_hint(
        "check KUBECONFIG, ~/.kube/config, or the pod's service account; \
         `kubectl config view --minify` shows what kubectl would use",
    )
}
