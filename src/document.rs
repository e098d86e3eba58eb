//! Documents that a person keeps in a file (the policy, the callers' keys): how they are read, and how
//! they are kept up with.
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

use crate::{
    error::{ActionError, Code},
    request::only_object,
};

/// The longest document that is read, in bytes.
pub const MAX_BYTES: u64 = 64 * 1024;

/// A kind of document; its default holds where there is no file.
pub trait Document: DeserializeOwned + Default {
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

/// The whole file, which must be a mapping.
#[derive(Deserialize)]
#[serde(bound = "T: DeserializeOwned")]
struct Root<T>(#[serde(deserialize_with = "only_object")] T);

/// The parser tells its position at the end too; once is enough.
fn without_position(message: &str) -> &str {
    message.split(" at line ").next().unwrap_or(message)
}

/// Where a document is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this file.
    File(PathBuf),
    /// It is this text, from the variable of this name; where there is no disk to put a file on.
    Variable(&'static str, String),
}

impl From<PathBuf> for Place {
    fn from(path: PathBuf) -> Self {
        Place::File(path)
    }
}

/// A document that follows its file.
pub struct Followed<T> {
    path: Option<PathBuf>,
    last: Mutex<Last<T>>,
}

struct Last<T> {
    /// What the file held, or why it could not be read.
    read: Result<String, String>,
    document: Arc<T>,
    fault: Option<ActionError>,
}

impl<T: Document> Followed<T> {
    /// The document in this place; without one the default.
    ///
    /// # Errors
    /// [`Code::Configuration`] if there is a place and no such document in it.
    pub fn new(place: Option<Place>) -> Result<Self, ActionError> {
        let (path, text, document) = match place {
            Some(Place::File(path)) => {
                let text = read(&path).map_err(|why| unreadable::<T>(&path, &why))?;
                let document = T::parse(&text, &path.display().to_string())?;
                (Some(path), text, document)
            }
            Some(Place::Variable(name, text)) => {
                let document = T::parse(&text, &format!("in {name}"))?;
                (None, text, document)
            }
            None => (None, String::new(), T::default()),
        };
        let last = Last { read: Ok(text), document: Arc::new(document), fault: None };
        Ok(Followed { path, last: Mutex::new(last) })
    }

    /// The document as it is now.
    #[must_use]
    pub fn current(&self) -> Arc<T> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = &self.path {
            last.follow(path);
        }
        last.document.clone()
    }

    /// Why the file's present content is not what holds, if it is not.
    #[must_use]
    pub fn fault(&self) -> Option<ActionError> {
        let _ = self.current();
        self.last.lock().unwrap_or_else(PoisonError::into_inner).fault.clone()
    }
}

impl<T: Document> Last<T> {
    fn follow(&mut self, path: &Path) {
        let now = read(path);
        if now == self.read {
            return;
        }
        let parsed = match &now {
            Ok(text) => T::parse(text, &path.display().to_string()),
            Err(why) => Err(unreadable::<T>(path, why)),
        };
        self.read = now;
        match parsed {
            Ok(document) => {
                tracing::info!(path = %path.display(), "the {} has changed", T::KIND);
                self.document = Arc::new(document);
                self.fault = None;
            }
            Err(error) => {
                tracing::error!(
                    path = %path.display(), detail = error.detail,
                    "the new {} cannot be used: the old one stays", T::KIND
                );
                self.fault = Some(error);
            }
        }
    }
}

/// The file's text, or why there is none.
fn read(path: &Path) -> Result<String, String> {
    let read = || {
        let mut text = String::new();
        fs::File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(io::Error::other(format!("is longer than {MAX_BYTES} bytes")));
        }
        Ok(text)
    };
    read().map_err(|error| error.to_string())
}

fn unreadable<T: Document>(path: &Path, why: &str) -> ActionError {
    let detail = format!("{} {}: {why}", T::KIND, path.display());
    ActionError::new(Code::Configuration, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;

    fn file(text: &str) -> PathBuf {
        let name = format!("action-executor-policy-{}", uuid::Uuid::now_v7());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, text).expect("is written");
        path
    }

    #[test]
    fn without_a_file_the_shipped_policy_holds() {
        let source = Followed::<Policy>::new(None).expect("is there");
        assert_eq!(*source.current(), Policy::default());
    }

    #[test]
    fn a_broken_file_at_the_start_is_an_error() {
        let path = file("read_only: perhaps");
        assert!(Followed::<Policy>::new(Some(path.clone().into())).is_err());
        fs::remove_file(&path).expect("is removed");
        assert!(Followed::<Policy>::new(Some(path.into())).is_err());
    }

    #[test]
    fn a_change_holds_at_once_and_a_broken_one_keeps_the_old_policy() {
        let path = file("read_only: false");
        let source = Followed::<Policy>::new(Some(path.clone().into())).expect("is read");
        assert!(!source.current().read_only);
        fs::write(&path, "read_only: true").expect("is written");
        assert!(source.current().read_only);
        fs::write(&path, "read_only: perhaps").expect("is written");
        assert!(source.current().read_only);
        assert!(source.fault().is_some());
        fs::remove_file(&path).expect("is removed");
        assert!(source.current().read_only && source.fault().is_some());
        fs::write(&path, "read_only: false").expect("is written");
        assert!(!source.current().read_only && source.fault().is_none());
        fs::remove_file(&path).expect("is removed");
    }
}
