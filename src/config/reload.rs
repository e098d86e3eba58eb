//! Files that a person or a controller changes while the program runs (the policy, the callers' keys, a
//! certificate and its key): reading them strictly, and reloading them.
//!
//! A change applies to the next request, however it is made (an editor, a ConfigMap's symlink). A new content
//! that cannot be used is ignored: the old one stays, and the error is reported. This module knows no
//! particular file: the types that implement [`ConfigFile`] or [`FromFiles`] are elsewhere.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, de::DeserializeOwned};

use crate::contract::{
    error::{ActionError, Code},
    json::strict_object,
};

/// The maximum length of a file in bytes.
pub(crate) const MAX_BYTES: u64 = 64 * 1024;

/// A file that was modified this recently is read even if its stamp is the same: two changes within one tick
/// of the file system's clock have the same stamp.
const STAMP_GRANULARITY: Duration = Duration::from_secs(2);

/// A file in YAML; its default applies if there is none.
pub trait ConfigFile: DeserializeOwned + Default {
    /// Its name in errors.
    const KIND: &'static str;
    /// Where its format is described.
    const HINT: &'static str;
    /// Whether it may have secrets, which no error repeats.
    const IS_SECRET: bool;

    /// Reads one from YAML; `name` is its path or variable, for errors.
    ///
    /// # Errors
    /// [`Code::Configuration`] with line and column.
    fn parse(text: &str, name: &str) -> Result<Self, ActionError> {
        let kind = Self::KIND;
        if text.trim().is_empty() {
            let what = "is empty; write `{}` for the default";
            return Err(ActionError::new(Code::Configuration, format!("{kind} {name} {what}")));
        }
        let options = serde_saphyr::options! { strict_booleans: true };
        let read = serde_saphyr::from_str_with_options::<Root<Self>>(text, options);
        read.map(|root| root.0).map_err(|error| {
            let position = error.location().map(|at| format!(":{}:{}", at.line(), at.column()));
            let position = position.unwrap_or_default();
            let what = error.without_snippet().to_string();
            let first = what.lines().next().unwrap_or_default();
            let what = if Self::IS_SECRET { without_quotes(first) } else { first.to_owned() };
            let detail = format!("{kind} {name}{position}: {}", plain(&what));
            ActionError::new(Code::Configuration, detail).with_hint(Self::HINT)
        })
    }
}

/// A value that is built from files, and rebuilt when they change.
pub trait FromFiles: Sized {
    /// Its name in errors.
    const NAME: &'static str;

    /// Builds it from its files, in the order of their paths; without files, the default.
    ///
    /// # Errors
    /// [`Code::Configuration`], naming the file at fault.
    fn from_files(files: &[File]) -> Result<Self, ActionError>;
}

/// A file as it was read.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    /// Its path.
    pub path: PathBuf,
    /// Its content; may be a secret.
    pub text: String,
}

impl<T: ConfigFile> FromFiles for T {
    const NAME: &'static str = T::KIND;

    fn from_files(files: &[File]) -> Result<Self, ActionError> {
        let read = |file: &File| T::parse(&file.text, &file.path.display().to_string());
        files.first().map_or_else(|| Ok(T::default()), read)
    }
}

/// The document of a file, which must be a mapping.
#[derive(Deserialize)]
#[serde(bound = "T: DeserializeOwned")]
struct Root<T>(#[serde(deserialize_with = "strict_object")] T);

/// The parser's message without the names that it quotes from the file.
fn without_quotes(message: &str) -> String {
    message.split('`').step_by(2).map(str::trim_end).collect()
}

/// The parser's message without its position, which the error states already, and without words of Rust.
fn plain(message: &str) -> &str {
    let message = message.split(" at line ").next().unwrap_or(message);
    match message.split(", set DuplicateKeyPolicy").next().unwrap_or(message) {
        "expected mapping start" => "expected a mapping",
        "invalid u64" | "invalid u32" => "must be a whole number from 0",
        boolean if boolean.starts_with("invalid boolean") => "must be true or false",
        other => other,
    }
}

/// Where the content of a file of configuration comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The file with this path.
    File(PathBuf),
    /// The environment variable of this name, with its decoded content.
    Variable(&'static str, String),
}

impl From<PathBuf> for Source {
    fn from(path: PathBuf) -> Self {
        Source::File(path)
    }
}

/// A value that follows its files.
pub struct Reloading<T> {
    paths: Vec<PathBuf>,
    loaded: Mutex<Loaded<T>>,
}

struct Loaded<T> {
    /// The stamps of the files before they were last read.
    stamps: Vec<Option<Stamp>>,
    /// The files as they were last read, or why one could not be read.
    files: Result<Vec<File>, ActionError>,
    value: Arc<T>,
    error: Option<ActionError>,
}

impl<T: ConfigFile> Reloading<T> {
    /// The value of this source; without one, the default.
    ///
    /// # Errors
    /// [`Code::Configuration`] if the source cannot be read or is not valid.
    pub fn new(source: Option<Source>) -> Result<Self, ActionError> {
        match source {
            Some(Source::File(path)) => Reloading::of(vec![path]),
            Some(Source::Variable(name, text)) => {
                Ok(Reloading::constant(T::parse(&text, &format!("in {name}"))?))
            }
            None => Ok(Reloading::constant(T::default())),
        }
    }
}

impl<T: FromFiles> Reloading<T> {
    /// The value of the files with these paths.
    ///
    /// # Errors
    /// [`Code::Configuration`] if a file cannot be read or is not valid.
    pub(crate) fn of(paths: Vec<PathBuf>) -> Result<Self, ActionError> {
        let stamps = stamps(&paths);
        let files = read_all::<T>(&paths)?;
        let value = Arc::new(T::from_files(&files)?);
        let loaded = Loaded { stamps, files: Ok(files), value, error: None };
        Ok(Reloading { paths, loaded: Mutex::new(loaded) })
    }

    fn constant(value: T) -> Self {
        let (stamps, files) = (Vec::new(), Ok(Vec::new()));
        let loaded = Loaded { stamps, files, value: Arc::new(value), error: None };
        Reloading { paths: Vec::new(), loaded: Mutex::new(loaded) }
    }

    /// The value of the files' present content, or of the last content that was valid. Costs one `stat` per
    /// file; call it once per request, so that a request sees one value.
    pub(crate) fn current(&self) -> Arc<T> {
        self.reload().value.clone()
    }

    /// Why the files' present content is not in use, if it is not.
    pub(crate) fn load_error(&self) -> Option<ActionError> {
        self.reload().error.clone()
    }

    fn reload(&self) -> MutexGuard<'_, Loaded<T>> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.reload(&self.paths);
        loaded
    }
}

impl<T: FromFiles> Loaded<T> {
    fn reload(&mut self, paths: &[PathBuf]) {
        let stamps = stamps(paths);
        if stamps == self.stamps && !stamps.iter().flatten().any(Stamp::is_recent) {
            return;
        }
        let files = read_all::<T>(paths);
        // Several files are not read at one moment: if they are being changed just now, the next request
        // reads them again.
        if paths.len() > 1 && read_all::<T>(paths) != files {
            return;
        }
        self.stamps = stamps;
        if files == self.files {
            return;
        }
        let built = files.as_ref().map_err(Clone::clone).and_then(|files| T::from_files(files));
        self.files = files;
        let path = paths.first().map(|path| path.display().to_string());
        match built {
            Ok(value) => {
                tracing::info!(path, "{} reloaded", T::NAME);
                self.value = Arc::new(value);
                self.error = None;
            }
            Err(error) => {
                tracing::error!(
                    path,
                    detail = error.detail,
                    "{} not reloaded: the new content cannot be used, the old one stays",
                    T::NAME
                );
                self.error = Some(error);
            }
        }
    }
}

/// What `stat` reports of a file; it differs if another file or another content is there.
#[derive(PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    /// Device, inode, and the time of the last change of the inode.
    #[cfg(unix)]
    inode: (u64, u64, i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        #[cfg(unix)]
        let inode = {
            use std::os::unix::fs::MetadataExt;
            (metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec())
        };
        Some(Stamp {
            modified: metadata.modified().ok(),
            length: metadata.len(),
            #[cfg(unix)]
            inode,
        })
    }

    fn is_recent(&self) -> bool {
        let age = self.modified.and_then(|modified| modified.elapsed().ok());
        age.is_none_or(|age| age < STAMP_GRANULARITY)
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Option<Stamp>> {
    paths.iter().map(|path| Stamp::of(path)).collect()
}

fn read_all<T: FromFiles>(paths: &[PathBuf]) -> Result<Vec<File>, ActionError> {
    paths.iter().map(|path| read_one(path, T::NAME)).collect()
}

/// Reads a file; `name` is its name in errors.
///
/// # Errors
/// [`Code::Configuration`] if it does not exist, is not text or is longer than [`MAX_BYTES`].
pub(crate) fn read_one(path: &Path, name: &str) -> Result<File, ActionError> {
    match read(path) {
        Ok(text) => Ok(File { path: path.to_owned(), text }),
        Err(why) => {
            let detail = format!("{name} {}: {why}", path.display());
            Err(ActionError::new(Code::Configuration, detail))
        }
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::other(format!("is longer than {MAX_BYTES} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;

    fn file_with(text: &str) -> PathBuf {
        let name = format!("action-executor-policy-{}", uuid::Uuid::now_v7());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, text).expect("is written");
        path
    }

    #[test]
    fn a_message_without_quotes_has_nothing_of_the_file() {
        let message = "unknown field `canary`, expected one of version, keys";
        assert_eq!(without_quotes(message), "unknown field, expected one of version, keys");
        assert_eq!(without_quotes("invalid u64"), "invalid u64");
    }

    #[test]
    fn the_shipped_policy_applies_without_a_file() {
        let policy = Reloading::<Policy>::new(None).expect("is valid");
        assert_eq!(*policy.current(), Policy::default());
    }

    #[test]
    fn an_invalid_file_at_the_start_is_an_error() {
        let path = file_with("read_only: perhaps");
        assert!(Reloading::<Policy>::new(Some(path.clone().into())).is_err());
        fs::remove_file(&path).expect("is removed");
        assert!(Reloading::<Policy>::new(Some(path.into())).is_err());
    }

    #[test]
    fn a_change_applies_at_once_and_an_invalid_one_keeps_the_old_policy() {
        let path = file_with("read_only: false");
        let policy = Reloading::<Policy>::new(Some(path.clone().into())).expect("is valid");
        assert!(!policy.current().read_only);
        fs::write(&path, "read_only: true").expect("is written");
        assert!(policy.current().read_only);
        fs::write(&path, "read_only: perhaps").expect("is written");
        assert!(policy.current().read_only);
        assert!(policy.load_error().is_some());
        fs::remove_file(&path).expect("is removed");
        assert!(policy.current().read_only && policy.load_error().is_some());
        fs::write(&path, "read_only: false").expect("is written");
        assert!(!policy.current().read_only && policy.load_error().is_none());
        fs::remove_file(&path).expect("is removed");
    }

    #[cfg(unix)]
    #[test]
    fn an_old_file_in_place_of_another_is_read() {
        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
        let age = |path: &Path| {
            let file = fs::File::options().write(true).open(path).expect("is opened");
            file.set_modified(hour_ago).expect("is set");
        };
        let (path, other) = (file_with("read_only: true "), file_with("read_only: false"));
        age(&path);
        age(&other);
        let policy = Reloading::<Policy>::new(Some(path.clone().into())).expect("is valid");
        assert!(policy.current().read_only);
        fs::rename(&other, &path).expect("is renamed");
        assert!(!policy.current().read_only);
        fs::remove_file(&path).expect("is removed");
    }
}
