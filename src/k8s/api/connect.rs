//! Finds the cluster and our credentials. Must not send a request.
//!
//! In order: a whole kubeconfig in `KUBECONFIG_BASE64`, the EKS cluster that `EKS_CLUSTER_NAME` names (in
//! the function runtime), the files of `KUBECONFIG`, `~/.kube/config`, the service account of the pod
//! that we run in. Without any of these there is no cluster, and simulation is offline. One that exists and
//! cannot be used is an error: a broken configuration must never mean "no cluster".

use std::{env, path::Path};

use http::{Request, Response, Uri};
use kube::{
    Config,
    client::{ClientBuilder, ConfigExt},
    config::{ExecInteractiveMode, KubeConfigOptions},
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
    connect_to(None, context).await
}

/// Finds the cluster in this kubeconfig, or as [`connect`] does without one.
///
/// # Errors
/// As [`connect`].
pub(crate) async fn connect_to(
    kubeconfig: Option<&Path>,
    context: Option<&str>,
) -> Result<Option<Cluster>, ActionError> {
    find_config(kubeconfig, context).await?.map(cluster).transpose()
}

/// The same while nobody can be asked, even if there is a terminal: a credential plugin must neither read from it nor
/// write to it.
///
/// # Errors
/// As [`connect`]; that the plugin needs a terminal.
pub(crate) async fn connect_unattended(
    context: Option<&str>,
) -> Result<Option<Cluster>, ActionError> {
    let Some(mut found) = find_config(None, context).await? else { return Ok(None) };
    forbid_questions(&mut found.config)?;
    cluster(found).map(Some)
}

/// A plugin of the kubeconfig's user is not interactive.
fn forbid_questions(config: &mut Config) -> Result<(), ActionError> {
    let Some(exec) = &mut config.auth_info.exec else { return Ok(()) };
    if exec.interactive_mode == Some(ExecInteractiveMode::Always) {
        return Err(misconfigured("the credential plugin needs a terminal"));
    }
    exec.interactive_mode = Some(ExecInteractiveMode::Never);
    Ok(())
}

fn cluster(found: ResolvedConfig) -> Result<Cluster, ActionError> {
    let ResolvedConfig { mut config, proxy_url, name } = found;
    move_user_of_url(&mut config);
    let credentials = Credentials::take_from(&mut config.auth_info)
        .map_err(|error| error.to_action_error(&config.cluster_url.to_string()))?;
    let connection = ApiConnection::new(&config, proxy_url.as_deref(), credentials.clone());
    let connection = connection.map_err(misconfigured)?;
    let user = &config.auth_info;
    let impersonates = user.impersonate.is_some()
        || user.impersonate_uid.is_some()
        || user.impersonate_groups.is_some()
        || user.impersonate_user_extra.is_some();
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
    Ok(cluster.with_name(name).impersonating(impersonates))
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
struct ResolvedConfig {
    config: Config,
    proxy_url: Option<String>,
    /// The context that is used, or the name of an EKS cluster.
    name: Option<String>,
}

impl ResolvedConfig {
    fn without_kubeconfig(name: Option<String>, config: Config) -> Option<Self> {
        Some(ResolvedConfig { config, proxy_url: None, name })
    }
}

async fn find_config(
    file: Option<&Path>,
    context: Option<&str>,
) -> Result<Option<ResolvedConfig>, ActionError> {
    #[cfg(feature = "lambda")]
    if file.is_none()
        && let Some((name, config)) = super::eks::config()?
    {
        if context.is_some() {
            return Err(misconfigured(
                "a kubeconfig context and EKS_CLUSTER_NAME cannot be combined",
            ));
        }
        return Ok(ResolvedConfig::without_kubeconfig(Some(name), config));
    }
    if let Some(kubeconfig) = kubeconfig::find_in(file)? {
        let used = context.map(str::to_owned).or_else(|| kubeconfig.current_context.clone());
        let cluster = used.as_deref().and_then(|name| kubeconfig::cluster(&kubeconfig, name));
        let proxy_url = cluster.and_then(|cluster| cluster.proxy_url.clone());
        let options = KubeConfigOptions { context: used.clone(), ..Default::default() };
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
        let config = config.map_err(|error| misconfigured(kubeconfig::explain(&error)))?;
        return Ok(Some(ResolvedConfig { config, proxy_url, name: used }));
    }
    if context.is_some() {
        return Err(misconfigured("a kubeconfig context is set, but there is no kubeconfig"));
    }
    if env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
        // Its errors have paths and names of variables alone.
        let config = Config::incluster().map_err(|error| misconfigured(chain(&error)))?;
        return Ok(ResolvedConfig::without_kubeconfig(None, config));
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
    fn a_plugin_is_not_interactive_without_a_person() {
        for (mode, expected) in [
            ("", Some(Some(ExecInteractiveMode::Never))),
            (", interactiveMode: IfAvailable", Some(Some(ExecInteractiveMode::Never))),
            (", interactiveMode: Never", Some(Some(ExecInteractiveMode::Never))),
            (", interactiveMode: Always", None),
        ] {
            let mut config = Config::new(Uri::from_static("https://c:6443"));
            let exec = serde_yaml_ng::from_str(&format!("{{command: login{mode}}}"));
            config.auth_info.exec = Some(exec.expect("is one"));
            let is_accepted = forbid_questions(&mut config).is_ok();
            let found = config.auth_info.exec.map(|exec| exec.interactive_mode);
            assert_eq!(found.filter(|_| is_accepted), expected, "{mode}");
        }
    }

    #[test]
    fn a_user_in_the_servers_url_is_in_no_message() {
        let mut config = Config::new(Uri::from_static("https://jo:canary%40@c:6443/prefix"));
        move_user_of_url(&mut config);
        assert_eq!(config.cluster_url.to_string(), "https://c:6443/prefix");
        assert_eq!(config.auth_info.username.as_deref(), Some("jo"));
    }
}
