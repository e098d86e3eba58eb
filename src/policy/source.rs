//! Where the policy comes from, and keeping up with it.
//!
//! The file is read again for each request: it is small, and so a change holds for the very next one,
//! however it came about (an editor, a ConfigMap's symlink). A new file that cannot be read or
//! understood changes nothing: the old policy stays, and that it is old is told.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::{MAX_POLICY_BYTES, Policy};
use crate::error::{ActionError, Code};

/// A policy that follows its file.
pub struct PolicySource {
    path: Option<PathBuf>,
    last: Mutex<Last>,
}

struct Last {
    /// What the file held, or why it could not be read.
    read: Result<String, String>,
    policy: Arc<Policy>,
    fault: Option<ActionError>,
}

impl PolicySource {
    /// The policy in this file; without one the shipped default.
    ///
    /// # Errors
    /// [`Code::Configuration`] if there is a file and it is no policy.
    pub fn new(path: Option<PathBuf>) -> Result<Self, ActionError> {
        let (read, policy) = match &path {
            Some(path) => {
                let text = read(path).map_err(|why| unreadable(path, &why))?;
                let policy = Policy::parse(&text, &path.display().to_string())?;
                (text, policy)
            }
            None => (String::new(), Policy::default()),
        };
        let last = Last { read: Ok(read), policy: Arc::new(policy), fault: None };
        Ok(PolicySource { path, last: Mutex::new(last) })
    }

    /// The policy as it is now.
    #[must_use]
    pub fn current(&self) -> Arc<Policy> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = &self.path {
            last.follow(path);
        }
        last.policy.clone()
    }

    /// Why the file's present content is not what holds, if it is not.
    #[must_use]
    pub fn fault(&self) -> Option<ActionError> {
        let _ = self.current();
        self.last.lock().unwrap_or_else(PoisonError::into_inner).fault.clone()
    }
}

impl Last {
    fn follow(&mut self, path: &Path) {
        let now = read(path);
        if now == self.read {
            return;
        }
        let parsed = match &now {
            Ok(text) => Policy::parse(text, &path.display().to_string()),
            Err(why) => Err(unreadable(path, why)),
        };
        self.read = now;
        match parsed {
            Ok(policy) => {
                tracing::info!(path = %path.display(), "the policy has changed");
                self.policy = Arc::new(policy);
                self.fault = None;
            }
            Err(error) => {
                tracing::error!(
                    path = %path.display(), detail = error.detail,
                    "the new policy cannot be used: the old one stays"
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
        fs::File::open(path)?.take(MAX_POLICY_BYTES + 1).read_to_string(&mut text)?;
        if text.len() as u64 > MAX_POLICY_BYTES {
            return Err(io::Error::other(format!("is longer than {MAX_POLICY_BYTES} bytes")));
        }
        Ok(text)
    };
    read().map_err(|error| error.to_string())
}

fn unreadable(path: &Path, why: &str) -> ActionError {
    let detail = format!("policy {}: {why}", path.display());
    ActionError::new(Code::Configuration, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> PathBuf {
        let name = format!("action-executor-policy-{}", uuid::Uuid::now_v7());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, text).expect("is written");
        path
    }

    #[test]
    fn without_a_file_the_shipped_policy_holds() {
        let source = PolicySource::new(None).expect("is there");
        assert_eq!(*source.current(), Policy::default());
    }

    #[test]
    fn a_broken_file_at_the_start_is_an_error() {
        let path = file("read_only: perhaps");
        assert!(PolicySource::new(Some(path.clone())).is_err());
        fs::remove_file(&path).expect("is removed");
        assert!(PolicySource::new(Some(path)).is_err());
    }

    #[test]
    fn a_change_holds_at_once_and_a_broken_one_keeps_the_old_policy() {
        let path = file("read_only: false");
        let source = PolicySource::new(Some(path.clone())).expect("is read");
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
