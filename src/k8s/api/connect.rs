//! Where the cluster is, and as whom we speak to it.
//!
//! In order: a whole kubeconfig in `KUBECONFIG_BASE64`, the EKS cluster that `EKS_CLUSTER_NAME` names (in
//! the function runtime), the files of `KUBECONFIG`, `~/.kube/config`, the service account of the pod
//! that we run in. If none of these is there, there is no cluster and simulation is offline. If one is there and
//! cannot be used, that is an error: a broken configuration must never turn into "no cluster".

use std::{env, path::PathBuf, time::Duration};

use http::Request;
use kube::{
    Config,
    client::ClientBuilder,
    config::{KubeConfigOptions, Kubeconfig},
};
use tower::util::MapRequestLayer;
use tracing::Span;

use crate::{
    config::text_of_base64,
    contract::error::{ActionError, Code},
    k8s::api::{client::Cluster, error::chain, warnings},
    telemetry::traces,
};

/// The variable that may hold a kubeconfig.
const IN_VARIABLE: &str = "KUBECONFIG_BASE64";

/// Longest time for a TCP connection and TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest silence of a server that has been asked something.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Finds the cluster, using kubeconfig context `context` if one is given.
///
/// Nothing is sent yet; a server that does not answer shows at the first call.
///
/// # Errors
/// [`Code::Configuration`] when what is configured cannot be read or used.
pub async fn connect(context: Option<&str>) -> Result<Option<Cluster>, ActionError> {
    let Some(mut config) = find_config(context).await? else { return Ok(None) };
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    let server = config.cluster_url.to_string();
    let builder = ClientBuilder::try_from(config).map_err(|error| misconfigured(chain(&error)))?;
    let client = builder
        .with_layer(&warnings::layer())
        .with_layer(&MapRequestLayer::new(name_trace))
        .build();
    Ok(Some(Cluster::new(client, server)))
}

/// Tells the API server which span of ours its own are to hang on (its TracingConfiguration says whether
/// it makes any).
fn name_trace<B>(mut request: Request<B>) -> Request<B> {
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
        return Err(misconfigured("a context was asked for, but there is no kubeconfig"));
    }
    if env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
        return Config::incluster().map(Some).map_err(|error| misconfigured(chain(&error)));
    }
    Ok(None)
}

/// The kubeconfig that a variable holds, where there is no disk to put one on.
fn in_variable() -> Result<Option<Kubeconfig>, ActionError> {
    let Some(text) = env::var_os(IN_VARIABLE).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    // The value may be a secret, so no error repeats any of it.
    let wrong = || misconfigured(format!("{IN_VARIABLE} holds no kubeconfig in base64"));
    let text = text.into_string().map_err(|_| wrong())?;
    let text = text_of_base64(&text).ok_or_else(wrong)?;
    Kubeconfig::from_yaml(&text).map(Some).map_err(|_| wrong())
}

/// The merged kubeconfig. Like kubectl, passes over files of `KUBECONFIG` that do not exist, but
/// unlike kubectl does not pretend that nothing was configured when none of them does.
fn find_kubeconfig() -> Result<Option<Kubeconfig>, ActionError> {
    let listed = env::var_os("KUBECONFIG").unwrap_or_default();
    let listed: Vec<PathBuf> =
        env::split_paths(&listed).filter(|path| !path.as_os_str().is_empty()).collect();
    let candidates =
        if listed.is_empty() { default_path().into_iter().collect() } else { listed.clone() };
    let present: Vec<_> = candidates.into_iter().filter(|path| path.exists()).collect();
    if present.is_empty() {
        return match listed.first() {
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
