//! Documents that a person keeps in a file (the policy, the callers' keys): how they are read, and how
//! they, and what else is made of files (a certificate and its key), are kept up with.
//!
//! A document is read strictly and whole: what is wrong is told with line and column. Its file is read
//! again for each request: it is small, and so a change holds for the very next one, however it came
//! about (an editor, a ConfigMap's symlink). A new file that cannot be read or understood changes
//! nothing: the old document stays, and that it is old is told.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, de::DeserializeOwned};

use crate::contract::{
    error::{ActionError, Code},
    json::strict_object,
};

/// The longest document that is read, in bytes.
pub const MAX_BYTES: u64 = 64 * 1024;

/// A kind of document; its default holds where there is no file.
pub trait ConfigFile: DeserializeOwned + Default {
    /// What it is called in errors.
    const KIND: &'static str;
    /// Where to look what can be in it.
    const HINT: &'static str;

    /// Reads one from YAML; `name` is what it is called in errors.
    ///
    /// # Errors
    /// [`Code::Configuration`] with line and column.
    fn parse(text: &str, name: &str) -> Result<Self, ActionError> {
        let kind = Self::KIND;
        if text.trim().is_empty() {
            let what = "is empty; `{}` would be the default";
            return Err(ActionError::new(Code::Configuration, format!("{kind} {name} {what}")));
        }
        let options = serde_saphyr::options! { strict_booleans: true };
        let read = serde_saphyr::from_str_with_options::<Root<Self>>(text, options);
        read.map(|root| root.0).map_err(|error| {
            let place = error.location().map(|at| format!("{}:{}", at.line(), at.column()));
            let place = place.map(|place| format!(":{place}")).unwrap_or_default();
            let what = error.without_snippet().to_string();
            let first = what.lines().next().unwrap_or_default();
            let detail = format!("{kind} {name}{place}: {}", without_position(first));
            ActionError::new(Code::Configuration, detail).with_hint(Self::HINT)
        })
    }
}

/// What is made of the content of files, and made anew when they change.
pub trait FromFiles: Sized {
    /// What it is called in errors.
    const NAME: &'static str;

    /// Makes it of its files, in the order in which they were named; of none there is a default.
    ///
    /// # Errors
    /// [`Code::Configuration`], naming the file at fault.
    fn from_files(files: &[File]) -> Result<Self, ActionError>;
}

/// A file as it was read.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    /// Where it is.
    pub path: PathBuf,
    /// What it holds; may be a secret.
    pub text: String,
}

impl<T: ConfigFile> FromFiles for T {
    const NAME: &'static str = T::KIND;

    fn from_files(files: &[File]) -> Result<Self, ActionError> {
        let read = |file: &File| T::parse(&file.text, &file.path.display().to_string());
        files.first().map_or_else(|| Ok(T::default()), read)
    }
}

/// The whole file, which must be a mapping.
#[derive(Deserialize)]
#[serde(bound = "T: DeserializeOwned")]
struct Root<T>(#[serde(deserialize_with = "strict_object")] T);

/// The parser tells its position at the end too; once is enough.
fn without_position(message: &str) -> &str {
    message.split(" at line ").next().unwrap_or(message)
}

/// Where a document is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// In this file.
    File(PathBuf),
    /// It is this text, from the variable of this name; where there is no disk to put a file on.
    Variable(&'static str, String),
}

impl From<PathBuf> for Source {
    fn from(path: PathBuf) -> Self {
        Source::File(path)
    }
}

/// What follows its files.
pub struct Reloading<T> {
    paths: Vec<PathBuf>,
    last: Mutex<Loaded<T>>,
}

struct Loaded<T> {
    /// What the files held, or why one could not be read.
    read: Result<Vec<File>, ActionError>,
    made: Arc<T>,
    fault: Option<ActionError>,
}

impl<T: ConfigFile> Reloading<T> {
    /// The document in this place; without one the default.
    ///
    /// # Errors
    /// [`Code::Configuration`] if there is a place and no such document in it.
    pub fn new(place: Option<Source>) -> Result<Self, ActionError> {
        match place {
            Some(Source::File(path)) => Reloading::of(vec![path]),
            Some(Source::Variable(name, text)) => {
                Ok(Reloading::unchanging(T::parse(&text, &format!("in {name}"))?))
            }
            None => Ok(Reloading::unchanging(T::default())),
        }
    }
}

impl<T: FromFiles> Reloading<T> {
    /// What is made of these files.
    ///
    /// # Errors
    /// [`Code::Configuration`] if one cannot be read, or it cannot be made of them.
    pub fn of(paths: Vec<PathBuf>) -> Result<Self, ActionError> {
        let files = read_all::<T>(&paths)?;
        let made = Arc::new(T::from_files(&files)?);
        Ok(Reloading { paths, last: Mutex::new(Loaded { read: Ok(files), made, fault: None }) })
    }

    fn unchanging(made: T) -> Self {
        let last = Loaded { read: Ok(Vec::new()), made: Arc::new(made), fault: None };
        Reloading { paths: Vec::new(), last: Mutex::new(last) }
    }

    /// It as it is now.
    #[must_use]
    pub fn current(&self) -> Arc<T> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.reload(&self.paths);
        last.made.clone()
    }

    /// Why the files' present content is not what holds, if it is not.
    #[must_use]
    pub fn load_error(&self) -> Option<ActionError> {
        let _ = self.current();
        self.last.lock().unwrap_or_else(PoisonError::into_inner).fault.clone()
    }
}

impl<T: FromFiles> Loaded<T> {
    fn reload(&mut self, paths: &[PathBuf]) {
        let now = read_all::<T>(paths);
        // Several files are not read at one moment: if they are being changed just now, the next look
        // will find them whole.
        if now == self.read || (paths.len() > 1 && read_all::<T>(paths) != now) {
            return;
        }
        let made = now.as_ref().map_err(Clone::clone).and_then(|files| T::from_files(files));
        self.read = now;
        let path = paths.first().map(|path| path.display().to_string());
        match made {
            Ok(made) => {
                tracing::info!(path, "the {} has changed", T::NAME);
                self.made = Arc::new(made);
                self.fault = None;
            }
            Err(error) => {
                tracing::error!(
                    path,
                    detail = error.detail,
                    "the new {} cannot be used: the old one stays",
                    T::NAME
                );
                self.fault = Some(error);
            }
        }
    }
}

fn read_all<T: FromFiles>(paths: &[PathBuf]) -> Result<Vec<File>, ActionError> {
    paths.iter().map(|path| read_one(path, T::NAME)).collect()
}

/// Reads a file; `name` is what it is called in errors.
///
/// # Errors
/// [`Code::Configuration`] if it is not there, is not text or is longer than [`MAX_BYTES`].
pub fn read_one(path: &Path, name: &str) -> Result<File, ActionError> {
    match read(path) {
        Ok(text) => Ok(File { path: path.to_owned(), text }),
        Err(why) => {
            let detail = format!("{name} {}: {why}", path.display());
            Err(ActionError::new(Code::Configuration, detail))
        }
    }
}

/// The file's text.
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

    fn modified_at(text: &str) -> PathBuf {
        let name = format!("action-executor-policy-{}", uuid::Uuid::now_v7());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, text).expect("is written");
        path
    }

    #[test]
    fn without_a_file_the_shipped_policy_holds() {
        let source = Reloading::<Policy>::new(None).expect("is there");
        assert_eq!(*source.current(), Policy::default());
    }

    #[test]
    fn a_broken_file_at_the_start_is_an_error() {
        let path = modified_at("read_only: perhaps");
        assert!(Reloading::<Policy>::new(Some(path.clone().into())).is_err());
        fs::remove_file(&path).expect("is removed");
        assert!(Reloading::<Policy>::new(Some(path.into())).is_err());
    }

    #[test]
    fn a_change_holds_at_once_and_a_broken_one_keeps_the_old_policy() {
        let path = modified_at("read_only: false");
        let source = Reloading::<Policy>::new(Some(path.clone().into())).expect("is read");
        assert!(!source.current().read_only);
        fs::write(&path, "read_only: true").expect("is written");
        assert!(source.current().read_only);
        fs::write(&path, "read_only: perhaps").expect("is written");
        assert!(source.current().read_only);
        assert!(source.load_error().is_some());
        fs::remove_file(&path).expect("is removed");
        assert!(source.current().read_only && source.load_error().is_some());
        fs::write(&path, "read_only: false").expect("is written");
        assert!(!source.current().read_only && source.load_error().is_none());
        fs::remove_file(&path).expect("is removed");
    }
}
