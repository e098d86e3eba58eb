//! Reads kubeconfigs: from `KUBECONFIG_BASE64`, the files of `KUBECONFIG`, or `~/.kube/config`. Must not repeat their
//! content: an error names the file, line and column.

use std::{
    env, fs,
    path::{MAIN_SEPARATOR, Path, PathBuf},
};

use kube::config::{Cluster, Kubeconfig, KubeconfigError, LoadDataError};

use crate::{
    config::text_of_base64, contract::error::ActionError, k8s::api::connect::misconfigured,
};

/// The variable with a base64-encoded kubeconfig.
const KUBECONFIG_BASE64: &str = "KUBECONFIG_BASE64";

/// The kubeconfig that kubectl would use; none if there is none.
///
/// # Errors
/// [`Code::Configuration`](crate::contract::error::Code::Configuration) if one exists and cannot be used.
pub(crate) fn find() -> Result<Option<Kubeconfig>, ActionError> {
    match in_variable()? {
        Some(kubeconfig) => Ok(Some(kubeconfig)),
        None => in_files(),
    }
}

/// The kubeconfig in this file, or without one as [`find`] says.
///
/// # Errors
/// As [`find`]; the file cannot be read.
pub(crate) fn find_in(file: Option<&Path>) -> Result<Option<Kubeconfig>, ActionError> {
    match file {
        Some(file) => merge(read(file)?).map(Some),
        None => find(),
    }
}

/// The cluster of this context.
pub(crate) fn cluster<'a>(config: &'a Kubeconfig, context: &str) -> Option<&'a Cluster> {
    let context = config.contexts.iter().find(|it| it.name == context)?.context.as_ref()?;
    config.clusters.iter().find(|it| it.name == context.cluster)?.cluster.as_ref()
}

/// The namespace of this context of the kubeconfig in this file, or else of the current one; none if it has none, or
/// without a kubeconfig.
///
/// # Errors
/// As [`find`].
pub(crate) fn namespace(
    file: Option<&Path>,
    context: Option<&str>,
) -> Result<Option<String>, ActionError> {
    let Some(config) = find_in(file)? else { return Ok(None) };
    let name = context.or(config.current_context.as_deref());
    let context = config.contexts.iter().find(|it| Some(it.name.as_str()) == name);
    Ok(context.and_then(|it| it.context.as_ref()?.namespace.clone()).filter(|it| !it.is_empty()))
}

/// What is wrong with a kubeconfig, without its content.
pub(crate) fn explain(error: &KubeconfigError) -> String {
    use KubeconfigError::*;
    match error {
        CurrentContextNotSet => "the kubeconfig has no `current-context`".to_owned(),
        KindMismatch => "the kubeconfigs differ in `kind`".to_owned(),
        ApiVersionMismatch => "the kubeconfigs differ in `apiVersion`".to_owned(),
        LoadContext(name) => format!("the kubeconfig has no context '{name}'"),
        LoadClusterOfContext(name) => format!("the kubeconfig has no cluster '{name}'"),
        MissingClusterUrl => "the kubeconfig's cluster has no `server`".to_owned(),
        ParseClusterUrl(_) => "`server` of the kubeconfig's cluster is not a URL".to_owned(),
        ParseProxyUrl(_) => "HTTPS_PROXY is not a URL".to_owned(),
        LoadCertificateAuthority(error) => {
            format!("the kubeconfig's certificate authority {}", explain_data(error))
        }
        LoadClientCertificate(error) => {
            format!("the kubeconfig's client certificate {}", explain_data(error))
        }
        LoadClientKey(error) => format!("the kubeconfig's client key {}", explain_data(error)),
        ParseCertificates(_) => "the kubeconfig's certificate authority is not in PEM".to_owned(),
        // The files are read here.
        FindPath | ReadConfig(..) | Parse(_) => "the kubeconfig cannot be read".to_owned(),
    }
}

fn explain_data(error: &LoadDataError) -> String {
    match error {
        LoadDataError::DecodeBase64(_) => "is not in base64".to_owned(),
        LoadDataError::ReadFile(error, path) => {
            format!("cannot be read from {}: {}", path.display(), error.kind())
        }
        LoadDataError::NoBase64DataOrFile => {
            "is missing: a client certificate and its key belong together".to_owned()
        }
    }
}

/// The kubeconfig of the variable, for platforms without a file system.
fn in_variable() -> Result<Option<Kubeconfig>, ActionError> {
    let Some(text) = env::var_os(KUBECONFIG_BASE64).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let text = text.into_string().ok().and_then(|text| text_of_base64(&text)).ok_or_else(|| {
        misconfigured(format!("{KUBECONFIG_BASE64} is not a base64-encoded kubeconfig"))
    })?;
    merge(parse(&text, KUBECONFIG_BASE64)?).map(Some)
}

/// The merged kubeconfig. Like kubectl, it skips files of `KUBECONFIG` that do not exist; unlike kubectl, it
/// is an error if none of them exists.
fn in_files() -> Result<Option<Kubeconfig>, ActionError> {
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
    let documents: Result<Vec<_>, _> = present.iter().map(|path| read(path)).collect();
    merge(documents?.into_iter().flatten()).map(Some)
}

fn default_path() -> Option<PathBuf> {
    let home = env::var_os("HOME").filter(|home| !home.is_empty())?;
    Some(PathBuf::from(home).join(".kube").join("config"))
}

fn merge(documents: impl IntoIterator<Item = Kubeconfig>) -> Result<Kubeconfig, ActionError> {
    let merged = documents.into_iter().try_fold(Kubeconfig::default(), Kubeconfig::merge);
    merged.map_err(|error| misconfigured(explain(&error)))
}

/// The documents of a file. Paths in them are relative to its directory.
fn read(path: &Path) -> Result<Vec<Kubeconfig>, ActionError> {
    let name = path.display().to_string();
    let bytes = fs::read(path)
        .map_err(|error| misconfigured(format!("kubeconfig {name}: {}", error.kind())))?;
    let text = decoded(&bytes)
        .ok_or_else(|| misconfigured(format!("kubeconfig {name}: it is not text in UTF-8")))?;
    let mut documents = parse(&text, &format!("kubeconfig {name}"))?;
    if let Some(directory) = path.parent() {
        documents.iter_mut().for_each(|document| resolve_paths(document, directory));
    }
    Ok(documents)
}

/// UTF-8, or UTF-16 with a byte order mark, which PowerShell writes.
fn decoded(bytes: &[u8]) -> Option<String> {
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.chunks_exact(2).map(|it| unit([it[0], it[1]])).collect();
        String::from_utf16(&units).ok()
    };
    match bytes {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8(rest.to_vec()).ok(),
        bytes => String::from_utf8(bytes.to_vec()).ok(),
    }
}

fn parse(text: &str, name: &str) -> Result<Vec<Kubeconfig>, ActionError> {
    // kubectl has no limit on how often an anchor is used.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { enforce_alias_anchor_ratio: false },
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let position = error.location().map(|at| format!(":{}:{}", at.line(), at.column()));
        misconfigured(format!(
            "{name}{}: the YAML is not valid there, or not what a kubeconfig has there",
            position.unwrap_or_default()
        ))
    })
}

/// Makes paths absolute, as kubectl does (`GetAuthInfoFileReferences`): a command only if it has a directory.
fn resolve_paths(config: &mut Kubeconfig, directory: &Path) {
    let resolve = |path: &mut Option<String>| {
        if let Some(path) = path.as_mut().filter(|path| !path.is_empty()) {
            // An absolute path stays as it is.
            *path = directory.join(&*path).display().to_string();
        }
    };
    for cluster in config.clusters.iter_mut().filter_map(|it| it.cluster.as_mut()) {
        resolve(&mut cluster.certificate_authority);
    }
    for user in config.auth_infos.iter_mut().filter_map(|it| it.auth_info.as_mut()) {
        resolve(&mut user.client_certificate);
        resolve(&mut user.client_key);
        resolve(&mut user.token_file);
        if let Some(exec) = &mut user.exec
            && exec.command.as_ref().is_some_and(|it| it.contains(MAIN_SEPARATOR))
        {
            resolve(&mut exec.command);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_kubeconfig_is_reported_by_position_alone() {
        for (wrong, position) in [
            ("users:\n- name: a\n  user:\n    token: canary\n     x: canary\n", "name:"),
            ("users: [{name: a, user: {exec: {args: canary}}}]", "name:1:"),
            ("users: {canary: canary}", "name:1:"),
            ("{ canary: [", "name:"),
            ("canary", "name:1:"),
            ("users:\n- {name: a, user: {exec: {interactiveMode: canary}}}\n", "name:2:"),
        ] {
            let error = parse(wrong, "name").expect_err(wrong);
            assert!(error.detail.starts_with(position), "{wrong}: {}", error.detail);
            assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        }
    }

    #[test]
    fn an_anchor_may_be_used_any_number_of_times() {
        let mut text = "clusters:\n- name: c\n  cluster: &c {server: 'https://c'}\n".to_owned();
        (0..2000).for_each(|number| text += &format!("- {{name: c{number}, cluster: *c}}\n"));
        assert_eq!(parse(&text, "name").expect("is one")[0].clusters.len(), 2001);
    }

    #[test]
    fn paths_are_relative_to_the_kubeconfig() {
        let text = "users: [{name: a, user: {tokenFile: t, client-key: /k, exec: {command: bin/p}}}, \
                    {name: b, user: {exec: {command: p}}}]";
        let mut config = parse(text, "name").expect("is one").remove(0);
        resolve_paths(&mut config, Path::new("/home/jo/.kube"));
        let user = |number: usize| config.auth_infos[number].auth_info.clone().expect("is one");
        assert_eq!(user(0).token_file.as_deref(), Some("/home/jo/.kube/t"));
        assert_eq!(user(0).client_key.as_deref(), Some("/k"));
        let command = |number: usize| user(number).exec.expect("has one").command;
        assert_eq!(command(0).as_deref(), Some("/home/jo/.kube/bin/p"));
        assert_eq!(command(1).as_deref(), Some("p"));
    }

    #[test]
    fn a_file_in_utf_16_is_read() {
        assert_eq!(decoded(b"a").as_deref(), Some("a"));
        assert_eq!(decoded(b"\xff\xfea\0").as_deref(), Some("a"));
        assert_eq!(decoded(b"\xfe\xff\0a").as_deref(), Some("a"));
        assert_eq!(decoded(b"\xff"), None);
    }
}
