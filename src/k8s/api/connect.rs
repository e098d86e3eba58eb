//! Finds the cluster and our credentials. Must not send a request.
//!
//! In order: a whole kubeconfig in `KUBECONFIG_BASE64`, the EKS cluster that `EKS_CLUSTER_NAME` names (in
//! the function runtime), the files of `KUBECONFIG`, `~/.kube/config`, the service account of the pod
//! that we run in. Without any of these there is no cluster, and simulation is offline. One that exists and
//! cannot be used is an error: a broken configuration must never mean "no cluster".

use std::env;

use http::{Request, Response, Uri};
use kube::{
    Config,
    client::{ClientBuilder, ConfigExt},
    config::KubeConfigOptions,
};
use percent_encoding::percent_decode_str;
use tower::util::{MapRequestLayer, MapResponseLayer};
use tracing::Span;

use crate::{
    contract::error::{ActionError, Code},
    k8s::api::{
        client::Cluster, connection::ApiConnection, credentials::Credentials, error::chain,
        kubeconfig, server_time::ServerTime, warnings,
    },
    telemetry::traces,
};

/// Finds the cluster, with this kubeconfig context if one is given. Nothing is sent and no plugin is started: a
/// server that does not answer, or credentials that cannot be obtained, are noticed at the first call.
///
/// # Errors
/// [`Code::Configuration`] when the configuration cannot be read or used.
pub(crate) async fn connect(context: Option<&str>) -> Result<Option<Cluster>, ActionError> {
    let Some(Found { mut config, proxy_url, name }) = find_config(context).await? else {
        return Ok(None);
    };
    move_user_of_url(&mut config);
    let credentials = Credentials::take_from(&mut config.auth_info)
        .map_err(|error| error.to_action_error(&config.cluster_url.to_string()))?;
    let connection = ApiConnection::new(&config, proxy_url.as_deref(), credentials.clone());
    let connection = connection.map_err(misconfigured)?;
    let impersonation = config.extra_headers_layer();
    let impersonation = impersonation
        .map_err(|_| misconfigured("`as` of the kubeconfig's user cannot be in an HTTP header"))?;
    let time = ServerTime::default();
    let client = ClientBuilder::new(connection, &*config.default_namespace)
        .with_layer(&impersonation)
        .with_layer(&config.base_uri_layer())
        .with_layer(&warnings::layer())
        .with_layer(&note_time(time.clone()))
        .with_layer(&MapRequestLayer::new(inject_trace_context))
        .build();
    let server = config.cluster_url.to_string();
    let name = name_of(name.as_deref(), &config.cluster_url);
    let cluster = Cluster::new(client, server).with_time(time).with_credentials(credentials);
    Ok(Some(cluster.with_name(name)))
}

/// What distinguishes the cluster for people: the context alone may be called `default` in each of many kubeconfigs.
fn name_of(context: Option<&str>, server: &Uri) -> String {
    let host = server.authority().map_or_else(|| server.to_string(), ToString::to_string);
    match context {
        Some(context) => format!("{context} ({host})"),
        None => host,
    }
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

/// A user and password in the server's URL are credentials, if there are no others (as in Go's `net/http`), and must
/// not be in messages.
fn move_user_of_url(config: &mut Config) {
    let mut parts = config.cluster_url.clone().into_parts();
    let Some((user, host)) = parts.authority.as_ref().and_then(|it| it.as_str().rsplit_once('@'))
    else {
        return;
    };
    let (name, password) = user.split_once(':').unwrap_or((user, ""));
    let decoded = |text| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let (name, password) = (decoded(name), decoded(password));
    let auth = &config.auth_info;
    if auth.username.is_none() && auth.exec.is_none() && auth.auth_provider.is_none() {
        config.auth_info.username = Some(name);
        config.auth_info.password = Some(password.into());
    }
    parts.authority = host.parse().ok();
    if let Ok(url) = Uri::from_parts(parts) {
        config.cluster_url = url;
    }
}

/// A configuration, with what it leaves out of the kubeconfig.
struct Found {
    config: Config,
    proxy_url: Option<String>,
    /// The context that is used, or the name of an EKS cluster.
    name: Option<String>,
}

impl Found {
    fn without_kubeconfig(name: Option<String>, config: Config) -> Option<Self> {
        Some(Found { config, proxy_url: None, name })
    }
}

async fn find_config(context: Option<&str>) -> Result<Option<Found>, ActionError> {
    #[cfg(feature = "lambda")]
    if let Some((name, config)) = super::eks::config()? {
        return Ok(Found::without_kubeconfig(Some(name), config));
    }
    if let Some(kubeconfig) = kubeconfig::find()? {
        let used = context.map(str::to_owned).or_else(|| kubeconfig.current_context.clone());
        let cluster = used.as_deref().and_then(|name| kubeconfig::cluster(&kubeconfig, name));
        let proxy_url = cluster.and_then(|cluster| cluster.proxy_url.clone());
        let options = KubeConfigOptions { context: used.clone(), ..Default::default() };
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
        let config = config.map_err(|error| misconfigured(kubeconfig::explain(&error)))?;
        return Ok(Some(Found { config, proxy_url, name: used }));
    }
    if context.is_some() {
        return Err(misconfigured("a kubeconfig context is set, but there is no kubeconfig"));
    }
    if env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
        // Its errors have paths and names of variables alone.
        let config = Config::incluster().map_err(|error| misconfigured(chain(&error)))?;
        return Ok(Found::without_kubeconfig(None, config));
    }
    Ok(None)
}

/// The error for a configuration that cannot be used; the detail must have no text of a file.
pub(crate) fn misconfigured(detail: impl Into<String>) -> ActionError {
    ActionError::new(Code::Configuration, detail.into()).with_hint(
        "check KUBECONFIG, ~/.kube/config, or the pod's service account; \
         `kubectl config view --minify` shows what kubectl would use",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_called_by_its_context_and_server() {
        let server = Uri::from_static("https://api.prod.example:6443/k8s");
        assert_eq!(name_of(Some("prod"), &server), "prod (api.prod.example:6443)");
        assert_eq!(name_of(None, &server), "api.prod.example:6443");
    }

    #[test]
    fn a_user_in_the_servers_url_is_in_no_message() {
        let mut config = Config::new(Uri::from_static("https://jo:canary%40@c:6443/prefix"));
        move_user_of_url(&mut config);
        assert_eq!(config.cluster_url.to_string(), "https://c:6443/prefix");
        assert_eq!(config.auth_info.username.as_deref(), Some("jo"));
    }
}
